"""Text files with a key and a value in each line, such as image numbers and paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from smope.streams.archives.download import Archive
from smope.streams.archives.official_dataset import MakeError


class Value(NamedTuple):
    """The text after a key, and the number of its line, from 1."""

    text: str
    line: int


def read(path: Path, make_error: MakeError) -> dict[str, Value]:
    """Read a file with a key and a value in each line.

    Line ends of any system, a byte order mark and empty lines are accepted.

    Args:
        path: the file.
        make_error: makes the error of a missing file, a file that is not UTF-8 text, a line with a
            single word, and a repeated key.

    Returns:
        What follows the first word of each line, by that word, in the order of the file.
    """
    if not path.is_file():
        raise make_error(f"{path} is missing")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise make_error(f"cannot read {path} as UTF-8 text ({error})") from error
    values: dict[str, Value] = {}
    for number, line in enumerate(lines, start=1):
        words = line.strip().split(maxsplit=1)
        if len(words) == 1:
            raise make_error(
                f"line {number} of {path} has {words[0][:80]!r} alone instead of a key and a value"
            )
        if words and words[0] in values:
            raise make_error(
                f"lines {values[words[0]].line} and {number} of {path} are both of {words[0]}"
            )
        if words:
            values[words[0]] = Value(words[1], number)
    return values


def require_files(
    paths: Sequence[Path], list_name: str, archive: Archive, make_error: MakeError
) -> None:
    """Check that listed images exist.

    Args:
        paths: the images.
        list_name: the file that lists them.
        archive: what has to be unpacked again where some are missing.
        make_error: makes the error that says so.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise make_error(
            f"{len(missing):,} of the {len(paths):,} images that {list_name} names are missing, "
            f"the first is {missing[0]}; unpack {archive.filename} again"
        )
