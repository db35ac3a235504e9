"""Image files to RGB pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
from PIL import Image, ImageOps

from smope.errors import UserError

# Raise it with every change that gives some file other pixels: cached images are dropped then.
DECODER_VERSION = 1
SUFFIXES = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)

StoredImage = Path | bytes | numpy.ndarray
"""An image file, the bytes of one, or RGB pixels (height, width, 3) uint8."""


def encoded(image: StoredImage, name: str) -> bytes | numpy.ndarray:
    """The bytes of an image file, or pixels as they are; UserError naming `name` where it cannot
    be read.
    """
    if not isinstance(image, Path):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from error


def size(image: StoredImage) -> tuple[int, int] | None:
    """Height and width, as the header of an image file has them, perhaps swapped; None where it
    cannot be read.
    """
    if isinstance(image, numpy.ndarray):
        return image.shape[0], image.shape[1]
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.height, opened.width
    except Exception:  # as in decode, which names the image
        return None


def decode(image: bytes | str | Path | Image.Image, name: str | None = None) -> Image.Image:
    """An encoded image, its bytes or its path, or one that Pillow has opened, as an RGB picture.

    The EXIF orientation is applied, transparency is laid over white, 16-bit gray values are scaled
    to 8 bits, all other modes (gray, palette, CMYK, ...) are converted by Pillow; of an animation
    the first frame counts. UserError naming `name` (by default the path) where there is no readable
    image.
    """
    try:
        if isinstance(image, Image.Image):
            return _to_rgb(ImageOps.exif_transpose(image))
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return _to_rgb(ImageOps.exif_transpose(opened))
    except (
        Exception
    ) as error:  # Pillow's plugins meet damaged files with nearly every class of exception
        raise _unreadable(name or str(image)[:200], error) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        values = numpy.asarray(image).astype(numpy.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(numpy.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _unreadable(name: str, error: Exception) -> UserError:
    reason = (
        "not a known image format"
        if isinstance(error, Image.UnidentifiedImageError)
        else str(error)
    )
    return UserError(f"cannot read image {name}: {reason}; replace the file or remove it")
