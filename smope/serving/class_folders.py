"""The images of classes in folders, for learning and for evaluation. Imports no torch."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smope.errors import UserError
from smope.streams.folder import has_layout, named_folders, shortened
from smope.streams.layouts.listing import Listing, unreadable_text
from smope.streams.layouts.names import as_text
from smope.streams.layouts.service_names import service_name
from smope.streams.pixels.formats import COMMON_SUFFIXES, is_readable

LONGEST_NAME = 255  # bytes of a folder's name
FEW_IMAGES = 5  # a class with fewer is often not recognised
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassFolders:
    """Image files by class name, in natural order of the names.

    Attributes:
        key: what errors call the folder, such as DIR=photos.
        files: of each class, or their contents.
        directory: that was given.
        image_names: what errors call contents that came without a file; None for files.
    """

    key: str
    files: Mapping[str, Sequence[Path | bytes]]
    directory: Path
    image_names: Mapping[str, Sequence[str]] | None = None

    @property
    def class_names(self) -> list[str]:
        return list(self.files)


def class_folders(directory: Path, key: str) -> ClassFolders:
    """The class folders in a folder; or the folder itself as a class, if it holds image files.

    Args:
        directory: the folder.
        key: what errors call it.

    Raises:
        UserError: there is no such folder, or no image in it or in one of its folders.
    """
    named = f"{key}={directory}"
    if not directory.is_dir():
        problem = "is a file" if directory.exists() else "no such folder"
        raise UserError(f"{named}: {problem}; give a folder with a folder for each class")
    if has_layout(directory):
        raise UserError(
            f"{named}: has folders train and test; give one of them, such as {directory / 'train'}"
        )
    listing = Listing(directory, key=named)
    beside = [entry.name for entry in listing.entries(directory) if is_readable(entry.name)]
    folders = named_folders(directory, listing=listing)
    files = {
        name: [file for path in paths for file in listing.image_files(path)]
        for name, paths in folders.items()
    }
    if beside and not any(files.values()):
        files = {as_text(directory.resolve().name): listing.image_files(directory)}
    elif beside:
        text = "%s: image files beside the class folders are left out: %s"
        _log.warning(text, named, shortened(beside))
    _refuse_empty(named, files, listing)
    for text in listing.left_out.warnings():
        _log.warning("%s: %s", named, text)
    return ClassFolders(named, files, directory)


def class_name(text: str, key: str) -> str:
    """A class name that was typed, by the rules that names of class folders obey.

    Args:
        text: what was typed.
        key: what errors call it.

    Raises:
        UserError: no folder of a class is called so.
    """
    name = as_text(text.strip())
    problem = ""
    if not name:
        problem = "is empty"
    elif "/" in name or any(unicodedata.category(character) == "Cc" for character in name):
        problem = "has a slash or a control character"
    elif len(name.encode()) > LONGEST_NAME:
        problem = f"is longer than {LONGEST_NAME} bytes"
    elif service_name(name):
        problem = "is a name of service files, which are left out"
    if problem:
        raise UserError(f"{key}={name[:40]!r}: {problem}; write a name that a folder may have")
    return name


def _refuse_empty(named: str, files: Mapping[str, list[Path]], listing: Listing) -> None:
    empty = [name for name in files if not files[name]]
    if files and not empty:
        return
    counts = listing.left_out.suffix_counts
    not_read = f", {unreadable_text(counts)}" if counts else ""
    if len(empty) < len(files):
        raise UserError(
            f"{named}: folders without image files ({COMMON_SUFFIXES}){not_read}: "
            f"{shortened(empty)}; add images or remove them"
        )
    raise UserError(
        f"{named}: holds no image files ({COMMON_SUFFIXES}){not_read}; give a folder with a folder "
        "for each class"
    )


def known_names(
    folders: ClassFolders, class_names: Collection[str], more_images: bool
) -> list[str]:
    """The names that a model knows already.

    Args:
        folders: what it will learn.
        class_names: that it knows.
        more_images: whether images of known classes are welcome.

    Raises:
        UserError: a class is known, and `more_images` is not set.
    """
    known = [name for name in folders.class_names if name in class_names]
    if known and not more_images:
        raise UserError(
            f"{folders.key}: the model knows {shortened(known)} already; write --more-images "
            "(more_images=True) to teach it these images as well, or rename the folders"
        )
    return known
