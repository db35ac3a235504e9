"""Characters as the fonts that matplotlib ships draw them.

Two users share this file and must never share a character: the stream `glyphs` (the hundred
characters in `STREAM_CHARACTERS`) and the pretraining of the embedded backbone
(`pretraining_characters`). Both stay clear of digits, because the embedded backbone is measured on
a stream of handwritten ones. Many code points share one drawing (A, Α and А are Latin, Greek and
Cyrillic), so characters are told apart by their bitmaps and not by their code points.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# The faces with wide character sets and Unicode code points. Left out: the Computer Modern faces
# (their code points are TeX's, so "0" may be a prime there), STIXNonUni (private code points), the
# size variants (brackets only) and LastResort (one placeholder a script).
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)

STREAM_CHARACTERS = (
    "ABDEFGHJKLMNPQRTYabdefghijkmnqrty"
    "ΓΔΘΞΠΣΦΨΩαβγδεζηθλμξπρστφχψω"
    "БДЖИЛЦЧШЩЪЫЭЮЯб"
    "ÇÖŠÜ≠&@#%?!$€§¶+=<>{}√∞∫"
)

RENDER_SIZE = 64
"""Pixels of the em square at which bitmaps are drawn and compared."""

DIGITS = "0123456789"

_SMALLEST_INK = 16
_SHAPE_SIDE = 24
_LOOK_ALIKE = 0.9  # correlation of two shapes
_UNUSED_NAMES = re.compile(
    r"[0-9]|\b(ZERO|ONE|TWO|THREE|FOUR|FIVE|SIX|SEVEN|EIGHT|NINE|TEN|DIGIT|NUMBER|NUMERAL|HUNDRED"
    r"|THOUSAND)\b|^(BRAILLE|BOX DRAWINGS|HEXAGRAM|TETRAGRAM|DIGRAM|DOMINO|PLAYING CARD|DIE FACE"
    r"|.*\bBLOCK\b|.*\bSHADE\b)"
)


def font_path(face: str) -> Path:
    """Path of the file of `face` in the installed matplotlib."""
    import matplotlib  # late: importing it costs more than reading a file name

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"


@cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    # The basic layout draws each code point alone, whether or not Pillow was built with Raqm.
    return ImageFont.truetype(
        str(font_path(face)), RENDER_SIZE, layout_engine=ImageFont.Layout.BASIC
    )


@cache
def code_points(face: str) -> frozenset[int]:
    """Code points for which `face` has a drawing of its own."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(font_path(face))).get_charmap())


def bitmap(face: str, character: str) -> np.ndarray:
    """Draw one character, white on black, cropped to its ink.

    Returns:
        uint8 (height, width), at `RENDER_SIZE` pixels an em; (0, 0) where nothing is drawn.
    """
    side = 4 * RENDER_SIZE
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text((side // 4, side // 4), character, fill=255, font=_font(face))
    box = canvas.getbbox()
    return np.zeros((0, 0), np.uint8) if box is None else np.asarray(canvas.crop(box))


def bitmap_key(image: np.ndarray) -> bytes:
    """The bitmap as a value that is equal exactly for equal bitmaps, wherever on the line they
    stand.
    """
    return bytes(f"{image.shape}", "ascii") + image.tobytes()


def shows_digit(character: str) -> bool:
    """True if Unicode says that a character is, contains or means a number: 7, ², ½, Ⅳ, ⑨, ٣."""
    return unicodedata.numeric(character, None) is not None or any(
        part.isdigit() or unicodedata.numeric(part, None) is not None
        for part in unicodedata.normalize("NFKD", character)
    )


def is_candidate(character: str) -> bool:
    """True if a character may be used for pretraining, as far as its code point says.

    Letters and symbols may. Numbers may not, nor may what spells one in its name (a recycling sign,
    a playing card), nor what Unicode derives from other characters (Å, Ⓐ, ᴬ, ﬁ show another class's
    letter), nor the long families that are dots and lines rather than characters (Braille, box
    drawing).
    """
    name = unicodedata.name(character, "")
    usable = (
        unicodedata.category(character)[0] in "LSP"
        and bool(name)
        and not unicodedata.decomposition(character)
    )
    return usable and not _UNUSED_NAMES.search(name) and not shows_digit(character)


@cache
def forbidden_bitmaps() -> frozenset[bytes]:
    """Keys of the bitmaps of every number and every stream character in every face, and of the
    missing-glyph boxes.
    """
    keys = set()
    for face in FACES:
        points = code_points(face)
        drawn = [chr(p) for p in points if shows_digit(chr(p)) or chr(p) in STREAM_CHARACTERS]
        drawn.append("\uffff")  # no character, so a face draws its missing-glyph box
        keys.update(bitmap_key(bitmap(face, character)) for character in drawn)
    return frozenset(keys)


def shape(image: np.ndarray) -> np.ndarray:
    """A bitmap at a common size, as a vector (576,) of mean 0 and length 1; products of two are
    correlations.
    """
    scale = _SHAPE_SIDE / max(image.shape)
    width, height = (max(1, round(side * scale)) for side in image.shape[::-1])
    canvas = Image.new("L", (_SHAPE_SIDE, _SHAPE_SIDE))
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    canvas.paste(scaled, ((_SHAPE_SIDE - width) // 2, (_SHAPE_SIDE - height) // 2))
    vector = np.asarray(canvas, np.float64).ravel()
    vector = vector - vector.mean()
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


@cache
def reserved_shapes(face: str) -> np.ndarray:
    """Shapes (n, 576) of the ten digits and the stream characters that `face` draws."""
    points = code_points(face)
    return np.stack(
        [shape(bitmap(face, c)) for c in DIGITS + STREAM_CHARACTERS if ord(c) in points]
    )


def looks_reserved(face: str, character: str) -> bool:
    """True if a face draws a character much like a digit or stream character, whatever its size (ᴀ
    and A, ƚ and 1).
    """
    return float((reserved_shapes(face) @ shape(bitmap(face, character))).max()) > _LOOK_ALIKE


@cache
def pretraining_characters(least_drawings: int = 8) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Classes for pretraining: neither digits nor stream characters, by code point and by bitmap.

    A character is left out altogether if a single face draws it like a number or like a stream
    character; a class is, if it looks like one of these in another size. Characters that any face
    draws alike are one class.

    Args:
        least_drawings: a class is kept if at least so many drawings of it differ.

    Returns:
        For each class its drawings as (face, character), no two with the same bitmap; in order of
        code points.
    """
    forbidden = forbidden_bitmaps()
    drawings: dict[str, dict[str, bytes]] = defaultdict(dict)
    for face in FACES:
        for character in map(chr, sorted(code_points(face))):
            if is_candidate(character):
                drawings[character][face] = _usable_key(bitmap(face, character))
    banned = {c for c, keys in drawings.items() if any(key in forbidden for key in keys.values())}
    allowed = {c: keys for c, keys in drawings.items() if c not in banned}
    classes = []
    for group in _merge({c: [key for key in keys.values() if key] for c, keys in allowed.items()}):
        distinct = {
            allowed[c][face]: (face, c)
            for c in reversed(group)
            for face in reversed(FACES)
            if allowed[c].get(face)
        }
        if len(distinct) >= least_drawings and not any(
            looks_reserved(face, c) for face, c in distinct.values()
        ):
            classes.append(tuple(sorted(distinct.values())))
    return tuple(classes)


def _usable_key(image: np.ndarray) -> bytes:
    """The key of a bitmap, empty for blanks and for dots too small to have a shape."""
    return bitmap_key(image) if max(image.shape) >= _SMALLEST_INK else b""


def _merge(keys: dict[str, list[bytes]]) -> list[list[str]]:
    """Group characters that share a key, directly or through others; groups and members in order
    of code points.
    """
    parent = {character: character for character in keys}

    def root(character: str) -> str:
        while parent[character] != character:
            character = parent[character]
        return character

    first: dict[bytes, str] = {}
    for character in sorted(keys):
        for key in keys[character]:
            one, other = sorted((root(first.setdefault(key, character)), root(character)))
            parent[other] = one
    groups: dict[str, list[str]] = defaultdict(list)
    for character in sorted(keys):
        groups[root(character)].append(character)
    return [groups[name] for name in sorted(groups)]
