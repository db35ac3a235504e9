"""Image files to RGB pixels."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from smope.errors import UserError
from smope.streams.pixels import formats
from smope.streams.pixels.bit_depth import to_8_bits

# Raise it with every change that decodes some file to other pixels: that drops cached images.
DECODER_VERSION = 2

StoredImage = Path | bytes | numpy.ndarray
"""An image file, the bytes of one, or RGB pixels (height, width, 3) uint8."""


def read_encoded(image: StoredImage, name: str) -> bytes | numpy.ndarray:
    """Read an image file without decoding it.

    Args:
        image: a file; bytes and pixels are returned as they are.
        name: what errors call the image.

    Raises:
        UserError: the file cannot be read.
    """
    if not isinstance(image, Path):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from error


def read_size(image: StoredImage) -> tuple[int, int] | None:
    """Height and width from the header of an image file, before any EXIF rotation; None where it
    cannot be read.
    """
    if isinstance(image, numpy.ndarray):
        return image.shape[0], image.shape[1]
    try:
        with open_image(image) as opened:
            return opened.height, opened.width
    except Exception:  # of any class; decode names the image
        return None


def decode(image: bytes | str | Path | Image.Image, name: str | None = None) -> Image.Image:
    """Decode an image to RGB.

    The EXIF orientation is applied, transparency is laid over white, and values of more than 8 bits
    are scaled (bit_depth.py; a range that was guessed is in `info`). All other modes (gray,
    palette, CMYK, ...) are converted by Pillow. Of an animation the first frame counts.

    Args:
        image: bytes or path of an image file, or an image that Pillow has opened.
        name: what errors call it; None for its path.

    Raises:
        UserError: this is no image that can be read.
    """
    name = name or str(image)[:200]
    try:
        if isinstance(image, Image.Image):
            return _to_rgb(to_8_bits(image, None))
        if formats.is_camera_raw(name):
            raise UnidentifiedImageError("Pillow would read its small preview")
        with open_image(image) as opened:
            return _to_rgb(to_8_bits(opened, lambda: open_image(image)))
    except Exception as error:  # Pillow's plugins raise nearly every class for damaged files
        cause = ValueError("the file is empty") if _is_empty(image) else error
        raise _unreadable(name, cause) from cause


def _is_empty(image: bytes | str | Path | Image.Image) -> bool:
    """Whether an image file has no byte."""
    if isinstance(image, str | Path):
        return os.path.isfile(image) and os.path.getsize(image) == 0
    return image == b""


def open_image(image: bytes | str | Path) -> ImageFile:
    """Open the bytes or the path of an image file in one of the formats that are read."""
    file = io.BytesIO(image) if isinstance(image, bytes) else image
    return Image.open(file, formats=formats.formats())


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _unreadable(name: str, error: Exception) -> UserError:
    problem = reason(name, error)
    return UserError(f"cannot read image {name}: {problem}; replace the file or remove it")


def reason(name: str, error: BaseException | None) -> str:
    """Why an image cannot be read, in a few words.

    Args:
        name: of the image; a suffix says which format it has.
        error: what reading it raised.
    """
    if isinstance(error, UnidentifiedImageError):
        return formats.why_not_read(name) or "not a known image format"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
