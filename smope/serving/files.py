"""Finding image files. Imports no torch, so that a wrong path is reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from smope.errors import UserError
from smope.streams.layouts.listing import LeftOut, Listing, unreadable_text
from smope.streams.pixels.formats import COMMON_SUFFIXES


def find_images(
    paths: Iterable[Path], on_not_read: Callable[[LeftOut], object] | None = None
) -> list[Path]:
    """Files whatever their suffix, and of folders the image files in them and below, sorted,
    without service files.

    Args:
        paths: Files and folders.
        on_not_read: Called for each folder with pictures in formats that are not read.

    Raises:
        UserError: A path is missing, or a folder cannot be read or holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            listing = Listing(path, key=f"IMAGE={path}")
            inside = listing.image_files(path)
            left_out = listing.left_out
            if not inside:
                unreadable = left_out.suffix_counts
                seen = f", {unreadable_text(unreadable)}" if unreadable else ""
                raise UserError(
                    f"IMAGE={path}: no image file in this folder ({COMMON_SUFFIXES}){seen}; name "
                    "another"
                )
            files += inside
            if left_out.unreadable and on_not_read is not None:
                on_not_read(left_out)
        elif path.exists():
            files.append(path)
        else:
            raise UserError(
                f"IMAGE={path}: no such file or folder; give image files or folders of them"
            )
    return files
