"""`smope train --shell-completion install=bash`: completion of commands, options and overrides.

The script that a shell evaluates is Hydra's. It calls `smope -sc query=SHELL` with the line so far
in COMP_LINE; Hydra completes the overrides, and this module what stands before them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

from smope.cli.parser import Parser
from smope.config.hydra_flags import SHELLS, completions, install_completion
from smope.errors import UserError

COMPOSING = ("train", "plan", "tune", "reproduce", "data")
READING_RUNS = ("eval", "predict", "audit", "report", "collect")
USAGE = f"write install=SHELL, with one of {', '.join(SHELLS)}; in your shell's start file: " + (
    'eval "$(smope train -sc install=bash)"'
)


def run(words: Sequence[str], commands: Sequence[str]) -> int:
    """Print a script, or what can come next.

    Args:
        words: One of install=SHELL, uninstall=SHELL and query=SHELL.
        commands: The commands of `smope`.

    Returns:
        The exit code.
    """
    action, _, shell = words[0].partition("=") if len(words) == 1 else ("", "", "")
    if action not in ("install", "uninstall", "query") or shell not in SHELLS:
        raise UserError(f"--shell-completion {' '.join(words) or 'alone'}: {USAGE}")
    if action != "query":
        install_completion(shell, uninstall=action == "uninstall")
        return 0
    separator = "\n" if shell == "fish" else " "
    print(separator.join(next_words(os.environ.get("COMP_LINE", ""), commands)))
    return 0


def next_words(line: str, commands: Sequence[str]) -> list[str]:
    """How the last word of a command line can continue.

    Args:
        line: The line so far, `smope` first.
        commands: The commands of `smope`.
    """
    words = line.split()[1:]
    last = "" if line.endswith(" ") or not words else words.pop()
    if not words:
        return [name for name in [*commands, "--help", "--version"] if name.startswith(last)]
    if last.startswith("-"):
        return [option for option in _options(words[0]) if option.startswith(last)]
    if words[0] in READING_RUNS:
        return ["latest"] if last and "latest".startswith(last) else []
    if words[0] not in COMPOSING:
        return []
    overrides = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    folder = words[words.index("--config-dir") + 1 :][:1] if "--config-dir" in words else []
    try:
        continuations = completions(" ".join([*overrides, last]), *folder)
    except UserError:  # the line so far is wrong; the command itself will name the mistake
        return []
    # files whose name starts with _ are no choices
    return [word for word in continuations if "=_" not in word and "._target_" not in word]


def _options(command: str) -> list[str]:
    """The options of a command whose parser is a function of its own."""
    make_parser = getattr(importlib.import_module(f"smope.cli.{command}"), "_parser", None)
    parser = make_parser() if make_parser is not None else Parser("smope", "")
    return [option for action in parser._actions for option in action.option_strings]
