"""Finding image files, of which there may be millions. Imports no torch, so that a wrong path is
reported at once.

Nothing but names is held, as bytes and sorted: those still to come in the current folder and in the
folders above it. That is about 50 bytes and the name itself for each: 70 MB for a million files in
one folder, less than 1 MB where they lie in a thousand folders.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from smope.errors import UserError
from smope.streams.layouts.listing import unreadable_text
from smope.streams.layouts.service_names import service_name
from smope.streams.pixels.formats import COMMON_SUFFIXES, is_readable, is_unreadable_picture

FOLDER = b"\0"  # follows the name of a folder; no name has it, and it sorts before all that do not


class NotRead:
    """Counts what a search leaves out: pictures in formats that are not read, links to folders."""

    def __init__(self) -> None:
        self.suffix_counts: Counter[str] = Counter()
        self.links = 0
        self._first_link = ""

    def add_link(self, path: str) -> None:
        self.links += 1
        self._first_link = self._first_link or path

    def add(self, other: NotRead) -> None:
        """Count what another search left out."""
        self.suffix_counts.update(other.suffix_counts)
        self.links += other.links
        self._first_link = self._first_link or other._first_link

    def text(self) -> str:
        """A line about the pictures; "" if there are none."""
        by_name = Counter(dict(sorted(self.suffix_counts.items())))
        return unreadable_text(dict(by_name.most_common())) if by_name else ""

    def warnings(self) -> list[str]:
        """One line for the pictures, and one for the links."""
        links = (
            "1 link to a folder is" if self.links == 1 else f"{self.links:,} links to folders are"
        )
        text = f"{links} not followed, such as {self._first_link}; name the folder itself"
        return [line for line in (self.text(), text if self.links else "") if line]


def find_images(paths: Iterable[Path], not_read: NotRead | None = None) -> Iterator[Path]:
    """Files whatever their suffix, and of folders the image files in them and below, in the order
    of their names, without service files.

    Args:
        paths: Files and folders.
        not_read: Counts what is left out.

    Raises:
        UserError: A path is missing, or a folder cannot be read or holds no image.
    """
    for path in paths:
        if path.is_dir():
            yield from _inside(path, not_read)
        elif path.exists():
            yield path
        else:
            raise UserError(
                f"IMAGE={path}: no such file or folder; give image files or folders of them"
            )


def _inside(folder: Path, not_read: NotRead | None) -> Iterator[Path]:
    """The image files of one folder that the user named."""
    left_out, is_empty = NotRead(), True
    for file in _files_below(folder, left_out):
        is_empty = False
        yield file
    if is_empty:
        seen = f", {left_out.text()}" if left_out.text() else ""
        raise UserError(
            f"IMAGE={folder}: no image file in this folder ({COMMON_SUFFIXES}){seen}; name another"
        )
    if not_read is not None:
        not_read.add(left_out)


def _files_below(root: Path, left_out: NotRead) -> Iterator[Path]:
    """Image files in a folder and below. Links to folders are not followed."""
    pending = [(str(root), _names(str(root), root, left_out))]
    while pending:
        folder, names = pending[-1]
        if not names:
            pending.pop()
            continue
        name = names.pop()
        path = os.path.join(folder, os.fsdecode(name.removesuffix(FOLDER)))
        if name.endswith(FOLDER):
            pending.append((path, _names(path, root, left_out)))
        else:
            yield Path(path)


def _names(folder: str, root: Path, left_out: NotRead) -> list[bytes]:
    """Names of image files and of folders in a folder, the last one first."""
    names: list[bytes] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = _name(entry, left_out)
                if name:
                    names.append(name)
    except OSError as error:
        raise UserError(
            f"IMAGE={root}: folder {folder} cannot be read ({error.strerror}); change its "
            "permissions"
        ) from error
    names.sort(reverse=True)
    return names


def _name(entry: os.DirEntry[str], left_out: NotRead) -> bytes:
    """The name of an image file, or of a folder with `FOLDER` behind it; empty for all else."""
    if service_name(entry.name):
        return b""
    if entry.is_dir():
        if not entry.is_symlink():
            return os.fsencode(entry.name) + FOLDER
        left_out.add_link(entry.path)
    elif is_readable(entry.name):
        return os.fsencode(entry.name)
    elif is_unreadable_picture(entry.name):
        left_out.suffix_counts[os.path.splitext(entry.name)[1].lower()] += 1
    return b""
