"""Text files with a key and a value a line, as data sets have them: image numbers and paths, file
names and classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from smope.streams.layouts.parquet import Refused


class Value(NamedTuple):
    """What follows a key, and the number of the line, from 1."""

    text: str
    line: int


def read(path: Path, refused: Refused) -> dict[str, Value]:
    """The rest of each line by its first word, in the order of the file.

    Line ends of any system, a byte order mark at the start and empty lines do not matter. `refused`
    makes the error of a file that is missing or no UTF-8 text, and of a line that has a single word
    or a key for the second time.
    """
    if not path.is_file():
        raise refused(f"{path} is missing")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise refused(f"cannot read {path} as UTF-8 text ({error})") from error
    values: dict[str, Value] = {}
    for number, line in enumerate(lines, start=1):
        words = line.strip().split(maxsplit=1)
        if len(words) == 1:
            raise refused(
                f"line {number} of {path} has {words[0][:80]!r} alone instead of a key and a value"
            )
        if words and words[0] in values:
            raise refused(
                f"lines {values[words[0]].line} and {number} of {path} are both of {words[0]}"
            )
        if words:
            values[words[0]] = Value(words[1], number)
    return values
