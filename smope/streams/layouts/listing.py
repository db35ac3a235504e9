"""Listing the folders and image files of a data set, and what is left out of it.

Left out are service files and folders (service_names.py), what the user excludes, folders behind
links within a class, and pictures in formats that are not read. All of it is counted, so that
nothing is left out in silence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from smope.errors import UserError
from smope.streams.layouts.service_names import service_name
from smope.streams.pixels import formats

SHOWN_NAMES = 5


@dataclass(frozen=True)
class LeftOut:
    """Files and folders that are none of a data set's images.

    service: of operating systems, network storage and other programs, hidden ones included.
    excluded: what the user excludes.
    links: links to folders, which are not followed.
    unreadable: pictures in formats that are not read.
    unmatched: patterns of the user that exclude nothing.
    """

    service: tuple[Path, ...] = ()
    excluded: tuple[Path, ...] = ()
    links: tuple[Path, ...] = ()
    unreadable: tuple[Path, ...] = ()
    unmatched: tuple[str, ...] = ()

    @property
    def service_counts(self) -> dict[str, int]:
        """How many service files and folders there are of each name, the most frequent first."""
        return _counts([service_name(path.name) for path in self.service])

    @property
    def suffix_counts(self) -> dict[str, int]:
        """How many pictures are not read, by suffix, the most frequent first."""
        return _counts([path.suffix.lower() for path in self.unreadable])

    def below(self, directory: Path) -> LeftOut:
        """The pictures in a folder that are not read."""
        return LeftOut(
            unreadable=tuple(path for path in self.unreadable if path.is_relative_to(directory))
        )

    def relative_to(self, root: Path) -> LeftOut:
        """The same with paths from `root`, for a report."""

        def names(paths: tuple[Path, ...]) -> tuple[Path, ...]:
            return tuple(
                path.relative_to(root) if path.is_relative_to(root) else path for path in paths
            )

        return replace(
            self,
            service=names(self.service),
            excluded=names(self.excluded),
            links=names(self.links),
            unreadable=names(self.unreadable),
        )

    def facts(self) -> dict[str, Any]:
        """What run.json records: the counts that are not 0, as `left_out`."""
        counts = {
            "service": self.service_counts,
            "excluded": len(self.excluded),
            "links": len(self.links),
            "unreadable": self.suffix_counts,
        }
        present = {name: count for name, count in counts.items() if count}
        return {"left_out": present} if present else {}

    def warnings(self) -> Iterator[str]:
        """One line for each kind that may not be what the user wants."""
        if self.unreadable:
            yield unreadable_text(self.suffix_counts)
        if self.links:
            yield (
                f"{_number(len(self.links), 'link')} to folders within classes not followed, such "
                f"as {self.links[0]}; put the images, or links to them, into the class folder"
            )
        if self.unmatched:
            yield (
                f"stream.exclude: nothing is called {', '.join(self.unmatched)}; a pattern is a "
                "name such as '*_mask.png', or a path from stream.root with / in it"
            )


def unreadable_text(suffix_counts: dict[str, int]) -> str:
    """A line about pictures that are not read.

    Args:
        suffix_counts: how many there are, by suffix.

    Returns:
        Such as "72 pictures are not read: .heic 72 (pip install pillow-heif)".
    """
    counts = count_text(suffix_counts, len(suffix_counts))
    total = sum(suffix_counts.values())
    verb = "is" if total == 1 else "are"
    return (
        f"{_number(total, 'picture')} {verb} not read: {counts} ({formats.ways_out(suffix_counts)})"
    )


def count_text(counts: dict[str, int], most: int = SHOWN_NAMES) -> str:
    """The first `most` names with their counts, and how many names there are beyond."""
    shown = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:most])
    return shown + (f" and {len(counts) - most:,} more names" if len(counts) > most else "")


class Listing:
    """Lists folders and image files below a root, and remembers what is left out.

    Args:
        root: where the paths in patterns start from.
        exclude: patterns of names or, with a / in them, of paths from the root, that are left out.
        key: what errors call the root, such as stream.root=photos.
    """

    def __init__(self, root: Path, exclude: Sequence[str] = (), key: str = "") -> None:
        self._root = root
        self._patterns = {pattern: pattern.strip("/") for pattern in exclude}
        self._key = key
        self._matched: set[str] = set()
        self._paths: dict[str, set[Path]] = {
            kind: set() for kind in ("service", "excluded", "links", "unreadable")
        }

    @property
    def left_out(self) -> LeftOut:
        """What has been left out so far."""
        paths = {kind: tuple(sorted(paths)) for kind, paths in self._paths.items()}
        unmatched = [pattern for pattern in self._patterns if pattern not in self._matched]
        return LeftOut(**paths, unmatched=tuple(unmatched))

    def entries(self, directory: Path) -> list[os.DirEntry[str]]:
        """What is in a folder and not left out, sorted by name.

        Raises:
            UserError: it cannot be read.
        """
        try:
            with os.scandir(directory) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            start = f"{self._key}: " if self._key else ""
            raise UserError(
                f"{start}folder {directory} cannot be read ({error.strerror}); change its "
                f"permissions{self._how_to_exclude(directory)}"
            ) from error
        return [entry for entry in entries if not self._leave_out(entry)]

    def subdirectories(self, directory: Path) -> list[str]:
        """The names of the folders in a folder, sorted."""
        return [entry.name for entry in self.entries(directory) if entry.is_dir()]

    def image_files(self, directory: Path) -> list[Path]:
        """The image files in a folder and below, sorted. Links to folders are not followed."""
        files: list[Path] = []
        pending = [directory]
        while pending:
            for entry in self.entries(pending.pop()):
                if entry.is_dir():
                    if entry.is_symlink():
                        self._paths["links"].add(Path(entry.path))
                    else:
                        pending.append(Path(entry.path))
                elif formats.is_readable(entry.name):
                    files.append(Path(entry.path))
                elif formats.is_unreadable_picture(entry.name):
                    self._paths["unreadable"].add(Path(entry.path))
        return sorted(files, key=lambda path: path.relative_to(directory).parts)

    def _leave_out(self, entry: os.DirEntry[str]) -> bool:
        if service_name(entry.name):
            self._paths["service"].add(Path(entry.path))
            return True
        if not self._patterns:
            return False
        path = Path(entry.path)
        matching = {pattern for pattern in self._patterns if self._matches(path, pattern)}
        self._matched |= matching
        if matching:
            self._paths["excluded"].add(path)
        return bool(matching)

    def _matches(self, path: Path, pattern: str) -> bool:
        stripped = self._patterns[pattern]
        text = path.relative_to(self._root).as_posix() if "/" in stripped else path.name
        return fnmatchcase(text, stripped)

    def _how_to_exclude(self, directory: Path) -> str:
        """The end of an error about a folder below stream.root."""
        is_below = self._key.startswith("stream.") and directory != self._root
        return f", or leave it out with stream.exclude=[{directory.name}]" if is_below else ""


def visible(directory: Path) -> list[str]:
    """The names in a folder, sorted, without service files and folders."""
    return [entry.name for entry in Listing(directory).entries(directory)]


def subdirectories(directory: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without service folders."""
    return Listing(directory).subdirectories(directory)


def image_files(directory: Path) -> list[Path]:
    """The image files in a folder and below, sorted, without service files and folders."""
    return Listing(directory).image_files(directory)


def _counts(names: Sequence[str]) -> dict[str, int]:
    return dict(Counter(sorted(names)).most_common())


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
