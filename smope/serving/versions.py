"""File names of a model's later versions: model.safetensors, model-v2.safetensors and so on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from smope.run.artefact import Artefact, write_artefact

VERSION = re.compile(r"(.*)-v([1-9][0-9]{0,8})")


def later_versions(path: Path) -> Iterator[Path]:
    """The file names of the versions after that of `path`, in the same folder."""
    match = VERSION.fullmatch(path.stem)
    stem, number = (match[1], int(match[2])) if match else (path.stem, 1)
    while True:
        number += 1
        yield path.with_name(f"{stem}-v{number}{path.suffix}")


def versions_before(parent: Path, written: Path) -> list[Path]:
    """The versions of a model that are there and come before a new one of it.

    Args:
        parent: the model that the new one was made of.
        written: the new one, beside it.
    """
    earlier = takewhile(lambda path: path != written, later_versions(parent))
    return [path for path in earlier if path.exists()]


def write_version(artefact: Artefact, parent: Path, out: Path | None) -> Artefact:
    """Write an artefact to a new file.

    Two processes that do so at a time write two files: a name that is taken is never written to.

    Args:
        artefact: what is written.
        parent: the file of the model that it came from.
        out: the file; None for the next version of `parent` that does not exist yet.

    Returns:
        The artefact as it is read from there.

    Raises:
        FileExistsError: `out` exists.
        OSError: the file cannot be written; nothing is left behind.
    """
    if out is not None:
        return write_artefact(artefact, out)
    for path in later_versions(parent):
        if not path.exists():
            try:
                return write_artefact(artefact, path)
            except FileExistsError:  # another process was faster
                continue
    raise AssertionError("there is no last version")
