"""The word `-` in place of an image: what comes through a pipe. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import UnidentifiedImageError

from smope.errors import UserError
from smope.serving.files import find_images
from smope.streams.layouts.listing import LeftOut
from smope.streams.pixels.decode import open_image

STANDARD_INPUT = Path("-")


def find_inputs(
    paths: Iterable[Path],
    content: bytes | None,
    on_not_read: Callable[[LeftOut], object] | None = None,
) -> list[Path | bytes]:
    """Image files, and the bytes of an image that came through a pipe.

    Args:
        paths: Files, folders, and `-` for standard input.
        content: What standard input held; None if `-` is not among the paths.
        on_not_read: Called for each folder with pictures in formats that are not read.

    Raises:
        UserError: A path does not exist, a folder holds no image, or standard input holds neither
            an image nor paths.
    """
    inputs: list[Path | bytes] = []
    for path in paths:
        if path == STANDARD_INPUT:
            assert content is not None
            if _is_image(content):
                inputs.append(content)
            else:
                inputs += find_images(listed_paths(content), on_not_read)
        else:
            inputs += find_images([path], on_not_read)
    return inputs


def _is_image(content: bytes) -> bool:
    """Whether Pillow knows the format of a file with this content."""
    try:
        with open_image(content):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # a known format, but damaged: reading it names the reason
        return True


def listed_paths(content: bytes) -> Sequence[Path]:
    """Paths that are listed one a line, or separated by zero bytes as `find -print0` does."""
    separator = b"\0" if b"\0" in content else b"\n"
    names = [name.removesuffix(b"\r") for name in content.split(separator)]
    paths = [Path(name.decode(errors="surrogateescape")) for name in names if name.strip()]
    if not paths:
        raise UserError(
            "IMAGE=-: standard input is empty; pipe an image, or paths of images one a line"
        )
    if not _is_text(content) and not paths[0].exists():
        raise UserError(
            "IMAGE=-: standard input holds neither an image of a known format nor paths; pipe an "
            "image, or paths of images one a line"
        )
    return paths


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False
