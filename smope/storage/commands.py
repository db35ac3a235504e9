"""Commands that messages tell the user to give: they can be copied into a shell as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

# A value that Hydra would not take as a text: a keyword, or what is in quotes already.
NEEDS_QUOTES = re.compile(r"null|\?\?\?|'.*'|\".*\"", re.DOTALL)


def command(*words: str | Path) -> str:
    """A smope command for a POSIX shell; words with spaces, brackets or quotes are quoted."""
    return shlex.join(["smope", *map(str, words)])


def resume_command(run_dir: Path) -> str:
    """The command that continues a run."""
    return command("train", f"resume={_as_text(str(run_dir))}")


def _as_text(value: str) -> str:
    """A value that Hydra reads as this text. Spaces, commas and brackets need no quotes of Hydra's
    in a path (`smope.config.overrides`).
    """
    if not NEEDS_QUOTES.fullmatch(value):
        return value
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return f"'{escaped}'"
