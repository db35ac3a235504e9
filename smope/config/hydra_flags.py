"""What the flags of every Hydra program do: --cfg, --info, --shell-completion."""

from __future__ import annotations

import contextlib
import io
import logging
import sys

from smope.config.config import refuse_unknown_keys
from smope.config.hydra import compose_values, hydra_session
from smope.config.overrides import Overrides, read_overrides

CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
SHELLS = ("bash", "zsh", "fish")
# Hydra's script for zsh is that for bash, which zsh understands after this.
ZSH_START = "autoload -Uz compinit bashcompinit && compinit -u && bashcompinit"


def show_composed(
    overrides: Overrides, kind: str, package: str | None = None, *, resolve: bool = False
) -> None:
    """Print the composed configuration, as `--cfg` of a Hydra program does.

    Args:
        overrides: What to compose.
        kind: job (the run's keys), hydra (Hydra's own), or all.
        package: The part to print, such as trainer; None for everything.
        resolve: Whether interpolations are replaced by their values.

    Raises:
        UserError: A key does not exist.
    """
    refuse_unknown_keys(compose_values(overrides))
    with hydra_session(overrides) as (hydra, texts):
        hydra.show_cfg("train", texts, kind, package, resolve)


def show_hydra_info(overrides: Overrides, what: str) -> None:
    """Print what Hydra knows about its configuration, as `--info` of a Hydra program does.

    Args:
        overrides: What to compose.
        what: One of INFO.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    text = io.StringIO()  # Hydra logs these lines, and a log cannot end quietly in a closed pipe
    try:
        with hydra_session(overrides) as (hydra, texts), contextlib.redirect_stdout(text):
            hydra.show_info(what, "train", texts)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    print(text.getvalue().strip())


def install_completion(shell: str, *, uninstall: bool = False) -> None:
    """Print the script by which a shell completes `smope`; Hydra has one for each shell.

    Args:
        shell: bash, zsh or fish.
        uninstall: Print the script that takes it back.
    """
    before, sys.argv = sys.argv, ["smope"]  # the scripts register this name
    if shell == "zsh" and not uninstall:
        print(ZSH_START)
    try:
        with hydra_session(read_overrides([])) as (hydra, _):
            hydra.shell_completion("train", [f"{'un' if uninstall else ''}install={shell}"])
    finally:
        sys.argv = before


def completions(words: str, config_dir: str | None = None) -> list[str]:
    """How the last of some overrides can continue, by Hydra's completion.

    Args:
        words: The overrides as they are typed, separated by spaces; after a last space a new one
            begins.
        config_dir: A folder of the user's own that is laid out like conf/.
    """
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    with hydra_session(read_overrides([], config_dir)) as (hydra, texts):
        line = " ".join([*texts, words])  # texts: where the user's own folder is
        return DefaultCompletionPlugin(hydra.config_loader)._query("train", line)
