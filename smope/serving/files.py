"""Finding image files. Imports no torch, so that a wrong path is reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from smope.errors import UserError
from smope.streams.folder import image_files
from smope.streams.pixels.decode import SUFFIXES


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Files whatever their suffix, and of folders the image files in them and below, sorted,
    without hidden ones. UserError for a missing path and for a folder without images.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = image_files(path)
            if not inside:
                raise UserError(
                    f"IMAGE={path}: no image file in this folder ({', '.join(SUFFIXES)}); name "
                    "another"
                )
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise UserError(
                f"IMAGE={path}: no such file or folder; give image files or folders of them"
            )
    return files
