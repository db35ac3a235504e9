"""The page of all commands: what each prints for --help."""

from __future__ import annotations

import contextlib
import io
import os
from unittest import mock

from smope.cli.main import COMMANDS, main

KEYS_FOLLOW = "groups (group=choice)"  # of `smope train --help`; reference/keys has them
INTRODUCTION = """\
# Commands

`smope COMMAND --help` prints what is here. Exit codes: 0 done; 1 failed, such as a job of a sweep
or a file that cannot be written; 2 a mistake in the command; 130 interrupted; 143 terminated. A
mistake is answered in one line, which names the argument, the value, the rule and the way out;
`SMOPE_FULL_ERROR=1` shows the traceback as well.

`smope --version` prints the version. `eval "$(smope train -sc install=bash)"` completes commands,
groups and keys in the shell (also `zsh` and `fish`).
"""


def page() -> str:
    """The Markdown of the page."""
    return "\n".join([INTRODUCTION, *map(_section, COMMANDS)])


def _section(name: str) -> str:
    text = help_text(name).partition(KEYS_FOLLOW)[0].rstrip()
    more = "\nAll groups and keys: [reference of keys](keys/index.md).\n" if name == "train" else ""
    return f"## smope {name}\n\n```text\n{text}\n```\n{more}"


def help_text(name: str) -> str:
    """What `smope NAME --help` prints on a terminal of 100 columns."""
    printed = io.StringIO()
    terminal = mock.patch.dict(os.environ, COLUMNS="100", NO_COLOR="1")
    with terminal, contextlib.redirect_stdout(printed):
        code = main([name, "--help"])
    assert code == 0, f"smope {name} --help failed"
    return printed.getvalue()
