"""Pixels of more than 8 bits, scaled to 8 by the range that the file says it uses.

TIFF says so with BitsPerSample, MaxSampleValue, SMinSampleValue and SMaxSampleValue, PNG with sBIT;
PGM and JPEG 2000 are scaled while Pillow reads them. Where a file does not say it, 16 bits are
taken to use all their range, and 32 bits and floating point the smallest usual range that holds the
values. Whether that was a guess is noted, since such a picture may be much too dark.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
from PIL import Image, ImageOps

FULL_16_BITS = 65535
DARK_16_BITS = 2**14  # 16-bit values that are all below it use a quarter of their range or less
USUAL_HIGHEST = (255, FULL_16_BITS, 2**32 - 1)
USUAL_HIGHEST_OF_FLOATS = (1, 255, FULL_16_BITS)
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
MAX_SAMPLE, S_MIN_SAMPLE, S_MAX_SAMPLE = 281, 340, 341
SCALED_BY_PILLOW = ("PPM", "JPEG2000")
ASSUMED = "assumed_range"  # key of Image.info: the range that was guessed, as text


WAY_OUT = (
    "write the range into the files (TIFF: MaxSampleValue; PNG: sBIT), or convert them to 8 bits"
)


class Declared(NamedTuple):
    """What a file says of its values.

    range: lowest and highest, None where it does not say so. bits: of a sample, 0 if unknown.
    significant_bits: those of PNG's sBIT, 0 if unknown.
    """

    range: tuple[float, float] | None = None
    bits: int = 0
    significant_bits: int = 0
    white_is_zero: bool = False


def to_8_bits(opened: Image.Image, reopen: Callable[[], Image.Image] | None) -> Image.Image:
    """A picture with 8 bits a channel, turned as its EXIF orientation says.

    Args:
        opened: what Pillow has opened; other modes than deep ones are left as they are.
        reopen: opens the same file again; None where it is not known.
    """
    is_deep = opened.mode == "F" or opened.mode.startswith("I")
    is_deep_colour = not is_deep and ";16" in str(getattr(opened, "tile", ""))
    if not (is_deep or is_deep_colour):
        return ImageOps.exif_transpose(opened)
    declared = _declared(opened)
    if is_deep_colour:
        return _colours(opened, declared, reopen)
    is_float = opened.mode == "F"
    image = ImageOps.exif_transpose(opened)
    values = numpy.asarray(image)
    values = values.astype(numpy.float64 if is_float else numpy.int64)
    low, high, note = _range(values, declared, is_float)
    return _image(values, low, high, note, inverted=declared.white_is_zero)


def _colours(
    opened: Image.Image, declared: Declared, reopen: Callable[[], Image.Image] | None
) -> Image.Image:
    """16-bit colours, of which Pillow reads the high bytes; the low ones are read where they
    count.
    """
    low_bytes = _low_bytes(reopen()) if reopen and (declared.range or _sbit(declared)) else None
    image = ImageOps.exif_transpose(opened)
    if low_bytes is None:
        largest = 256 * int(numpy.asarray(image)[..., :3].max()) + 255
        if largest < DARK_16_BITS:
            image.info[ASSUMED] = _text(0, largest, FULL_16_BITS)
        return image
    values = numpy.asarray(image).astype(numpy.int64) * 256 + numpy.asarray(low_bytes)
    low, high, note = _range(values, declared, is_float=False)
    return _image(values, low, high, note)


def _low_bytes(image: Image.Image) -> Image.Image | None:
    """The same picture with the low byte of each sample; None where Pillow cannot read it."""
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    tiles: Any = getattr(image, "tile", [])
    changed = []
    for tile in tiles:
        name = tile[3] if isinstance(tile[3], str) else tile[3][0]
        base, _, order = name.rpartition(";16")
        if base not in ("RGB", "RGBA", "RGBX") or order not in swapped:
            return None
        other = f"{base};16{swapped[order]}"
        arguments = other if isinstance(tile[3], str) else (other, *tile[3][1:])
        changed.append(tile._replace(args=arguments))
    image.tile = changed  # pyright: ignore[reportAttributeAccessIssue]
    return ImageOps.exif_transpose(image)


def _image(
    values: numpy.ndarray, low: float, high: float, note: str, inverted: bool = False
) -> Image.Image:
    scaled = numpy.floor((values - low) * (255 / (high - low)) + 0.5).clip(0, 255)
    pixels = scaled.astype(numpy.uint8)
    image = Image.fromarray(255 - pixels if inverted else pixels)
    if note:
        image.info[ASSUMED] = note
    return image


def _range(values: numpy.ndarray, declared: Declared, is_float: bool) -> tuple[float, float, str]:
    """Which values are black and white, and a text where that is a guess."""
    if values.size == 0:
        return 0, 1, ""
    smallest, largest = values.min(), values.max()
    if declared.range and declared.range[0] <= smallest and largest <= declared.range[1]:
        return *declared.range, ""
    if is_float:
        return _float_range(smallest, largest)
    if _sbit(declared):
        return 0, _png_highest(values, declared.significant_bits), ""
    if declared.bits > 16:
        high = next(number for number in USUAL_HIGHEST if largest <= number)
        return 0, high, _text(smallest, largest, high)
    is_dark = largest < DARK_16_BITS and not declared.range
    contradicts = declared.range is not None
    note = _text(smallest, largest, FULL_16_BITS) if is_dark or contradicts else ""
    return 0, FULL_16_BITS, note


def _float_range(smallest: float, largest: float) -> tuple[float, float, str]:
    for high in USUAL_HIGHEST_OF_FLOATS:
        if smallest >= 0 and largest <= high:
            return 0, high, _text(smallest, largest, high)
    raise ValueError(
        f"floating-point pixels from {smallest:g} to {largest:g} have no known range; write "
        "SMinSampleValue and SMaxSampleValue into the file, or convert it to 8 bits"
    )


def _png_highest(values: numpy.ndarray, bits: int) -> int:
    """White in a PNG with so many significant bits of 16. The standard wants them at the top, but
    many programs leave them at the bottom, which shows in the bits below.
    """
    shift = 16 - bits
    below = values & (2**shift - 1)
    at_the_top = values.max() >= 2**bits or bool((below <= 1).all())
    return FULL_16_BITS if at_the_top else 2**bits - 1


def _sbit(declared: Declared) -> bool:
    return 0 < declared.significant_bits < 16


def _text(smallest: float, largest: float, high: float) -> str:
    return f"values {smallest:g} to {largest:g}, taken as 0 to {high:g}"


def _declared(opened: Image.Image) -> Declared:
    if opened.format in SCALED_BY_PILLOW and opened.mode != "F":
        return Declared((0, FULL_16_BITS), 16)
    if opened.format == "PNG":
        return Declared(None, 16, _significant_bits(opened))
    tags: Any = getattr(opened, "tag_v2", None)
    if opened.format != "TIFF" or tags is None:
        return Declared(None, 0 if opened.mode.startswith("I;16") else 32)

    def highest(tag: int) -> float | None:
        value = tags.get(tag)
        return max(value) if isinstance(value, tuple) else value

    bits = int(highest(BITS_PER_SAMPLE) or 0)
    is_signed = highest(SAMPLE_FORMAT) == 2
    white = highest(S_MAX_SAMPLE) or highest(MAX_SAMPLE)
    black = highest(S_MIN_SAMPLE) if highest(S_MAX_SAMPLE) else 0
    limits = (black or 0, white) if white and white > (black or 0) else None
    if limits is None and (bits < 16 or (is_signed and bits == 16)):
        limits = (0, 2 ** (bits - is_signed) - 1)
    return Declared(limits, bits, white_is_zero=highest(PHOTOMETRIC) == 0)


def _significant_bits(opened: Image.Image) -> int:
    """The most significant bits of a colour by the chunk sBIT of a PNG, 0 without it."""
    file: Any = getattr(opened, "fp", None)
    if file is None or file.closed:
        return 0
    position = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, name = int.from_bytes(head[:4], "big"), head[4:]
            if name == b"sBIT":
                return max(file.read(length)[:3], default=0)
            if name == b"IDAT":
                break
            file.seek(length + 4, 1)
        return 0
    finally:
        file.seek(position)
