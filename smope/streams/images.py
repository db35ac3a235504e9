"""Image files to RGB pictures, and where the pictures of a source are kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy
from PIL import Image, ImageOps

from smope.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
KEPT_BYTES = 256 * 2**20  # sources of up to this many decoded bytes are decoded once, when they are loaded


def decode(image: bytes | str | Path, name: str | None = None) -> Image.Image:
    """An encoded image, its bytes or its path, as an RGB picture.

    The EXIF orientation is applied, transparency is laid over white, 16-bit gray values are scaled to 8 bits,
    all other modes (gray, palette, CMYK, ...) are converted by Pillow; of an animation the first frame
    counts. UserError naming `name` (by default the path) where there is no readable image.
    """
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return _to_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # Pillow's plugins meet damaged files with nearly every class of exception
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
    reason = "not a known image format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return UserError(f"cannot read image {name}: {reason}; replace the file or remove it")


class KeptImages:
    """Pictures decoded once: uint8 arrays (height, width, 3) in memory."""

    def __init__(self, arrays: Sequence[numpy.ndarray]) -> None:
        self._arrays = arrays

    def load(self, index: int) -> Image.Image:
        """Image `index` as an RGB picture."""
        return Image.fromarray(self._arrays[index])


class FileImages:
    """Pictures decoded from their files each time they are asked for.

    `origin` says in error messages where the files come from, for instance `stream.root=photos`. All methods
    raise UserError naming the file that cannot be read.
    """

    def __init__(self, paths: Sequence[Path], origin: str) -> None:
        self._paths = paths
        self._origin = origin

    def load(self, index: int) -> Image.Image:
        """Image `index` as an RGB picture."""
        return decode(self._paths[index], self._name(index))

    def decoded_bytes(self) -> int:
        """Bytes of all pictures as uint8 RGB, by their headers alone."""
        return sum(map(self._decoded_bytes, range(len(self._paths))))

    def kept(self) -> KeptImages:
        """All pictures decoded into memory."""
        return KeptImages([numpy.asarray(self.load(index)) for index in range(len(self._paths))])

    def _decoded_bytes(self, index: int) -> int:
        try:
            with Image.open(self._paths[index]) as opened:
                return 3 * opened.width * opened.height
        except Exception as error:  # as in decode
            raise _unreadable(self._name(index), error) from error

    def _name(self, index: int) -> str:
        return f"{self._paths[index]} of {self._origin}"
