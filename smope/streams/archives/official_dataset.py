"""A published data set on disk: in which layout, in which folder, and how to get it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from smope.errors import UserError
from smope.streams import folder
from smope.streams.archives.download import Archive, fetch_archive
from smope.streams.layouts.listing import visible

Contents = TypeVar("Contents", covariant=True)
MakeError = Callable[[str], UserError]
"""Makes the error of a data set that cannot be used, from a text that says why."""
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")


class Layout(ABC, Generic[Contents]):
    """One way in which copies of a data set are laid out on disk."""

    @abstractmethod
    def is_in(self, directory: Path) -> bool:
        """True if `directory` has this layout, complete or not."""

    def looks_right(self, directory: Path) -> bool:
        """True if `directory`, which has this layout, seems to hold this very data set."""
        return True

    @abstractmethod
    def read(self, root: str, directory: Path, make_error: MakeError) -> Contents:
        """What `directory` holds; `root` is what the user gave. Errors are made by `make_error`."""


@dataclass(frozen=True)
class OfficialDataset(Generic[Contents]):
    """A data set whose owners publish an archive.

    name: of the stream. title: in errors. archive: the official file. top: the folder that it
    unpacks to, "" for none. accepted: the layouts in words. layouts: in the order in which they are
    looked for.
    """

    name: str
    title: str
    archive: Archive
    top: str
    accepted: str
    layouts: tuple[Layout[Contents], ...]

    def read(self, root: str, download: bool) -> Contents:
        """Read the data set from the first layout that is found.

        Args:
            root: the folder that holds it, or that holds the folder `top`.
            download: fetch the archive into `root` where no layout is there.

        Raises:
            UserError: names stream.root, what is wrong with it, what is accepted and where to get
                the archive.
        """
        root_directory = self._existing_directory(root, download)
        match = self._find(root_directory)
        if match is None:
            hint = _packed_archive(root_directory) or folder.better_root(
                root_directory, self._looks_right
            )
            holds = folder.shortened(visible(root_directory))
            raise self.error(root, f"it holds {holds}{hint}")
        layout, directory = match
        return layout.read(root, directory, partial(self.error, root))

    def error(self, root: str, problem: str) -> UserError:
        """The error of a folder `root` that is not this data set; `problem` says why."""
        return UserError(
            f"stream.root={root} is no complete {self.title}: {problem}; accepted are "
            f"{self.accepted}; {self._way_to_get()}"
        )

    def _existing_directory(self, root: str, download: bool) -> Path:
        root_directory = Path(root).expanduser()
        if download and not root_directory.is_file() and self._find(root_directory) is None:
            fetch_archive(self.archive, root_directory)
        try:
            return folder.existing_directory(root, self.accepted)
        except UserError as error:
            raise UserError(f"{error}; {self._way_to_get()}") from error

    def _find(self, root_directory: Path) -> tuple[Layout[Contents], Path] | None:
        """The first layout of the folder `top` or of `root_directory`, and the one that has it."""
        for directory in (root_directory / self.top, root_directory):
            if not os.path.isdir(directory) or not os.access(directory, folder.READABLE):
                continue
            for layout in self.layouts:
                if layout.is_in(directory):
                    return layout, directory
        return None

    def _looks_right(self, root_directory: Path) -> bool:
        match = self._find(root_directory)
        return match is not None and match[0].looks_right(match[1])

    def _way_to_get(self) -> str:
        size = "" if self.archive.size is None else f" ({self.archive.size / 1e6:,.0f} MB)"
        return (
            f"stream.download=true fetches {self.archive.url}{size} into a stream.root that has "
            "none of it"
        )


def _packed_archive(directory: Path) -> str:
    """Text naming the first archive in a directory, which is not unpacked yet, if there is one."""
    archives = [name for name in visible(directory) if name.endswith(ARCHIVE_SUFFIXES)]
    return f"; unpack {archives[0]}" if archives else ""
