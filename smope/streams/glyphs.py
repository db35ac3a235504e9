"""A hundred printed characters, rendered from fonts that are already installed: nothing to
download.

Letters of three alphabets and symbols, no digits, and none of the characters (by rendered bitmap)
that the embedded backbone was pretrained on. Training and test images come from different faces, so
that the letters have to be recognised and not the fonts. Bright ink on a dark ground, like the
stream `digits`.
"""

from __future__ import annotations

import math

import numpy
from PIL import Image, ImageFilter

from smope.streams.pixels.glyph_rendering import STREAM_CHARACTERS, bitmap, code_points
from smope.streams.source import ImageSet, Source

CLASS_NAMES = tuple(STREAM_CHARACTERS)
SIDE = 32
TRAIN_FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
)
TEST_FACES = (
    "DejaVuSansMono",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralItalic",
)
TRAIN_IMAGES, TEST_IMAGES = 40, 20  # of each character

# Fixed, and unrelated to the seed of a run: every run has the same images.
_SEED = 20260


def load() -> Source:
    """The hundred characters as 32 by 32 RGB: 40 training and 20 test images of each, whatever the
    seed.

    Pixels follow the installed FreeType and matplotlib's fonts; `content_hash` tells when a release
    of these draws differently.
    """
    images = {
        "train": _draw_all(TRAIN_FACES, TRAIN_IMAGES, _SEED),
        "test": _draw_all(TEST_FACES, TEST_IMAGES, _SEED + 1),
    }
    return Source(
        name="glyphs",
        class_names=CLASS_NAMES,
        train=_image_set(images["train"]),
        test=_image_set(images["test"]),
    )


def _image_set(drawn: list[tuple[int, numpy.ndarray]]) -> ImageSet:
    arrays = [numpy.repeat(image[:, :, None], 3, axis=2) for _, image in drawn]
    return ImageSet([target for target, _ in drawn], arrays)


def _draw_all(faces: tuple[str, ...], count: int, seed: int) -> list[tuple[int, numpy.ndarray]]:
    """`count` images (uint8, 32 by 32) of every character, its faces in turn, each image varied on
    its own.
    """
    generator = numpy.random.default_rng(seed)
    drawn = []
    for target, character in enumerate(STREAM_CHARACTERS):
        available = [face for face in faces if ord(character) in code_points(face)]
        inks = [Image.fromarray(bitmap(face, character)) for face in available]
        drawn += [(target, _vary(inks[index % len(inks)], generator)) for index in range(count)]
    return drawn


def _vary(ink: Image.Image, generator: numpy.random.Generator) -> numpy.ndarray:
    """One image of a cropped character: another pen, turned, slanted, stretched and shifted a
    little.
    """
    pen = generator.integers(4)
    margin = Image.new("L", (ink.width + 4, ink.height + 4))
    margin.paste(ink, (2, 2))
    if pen == 0:
        margin = margin.filter(ImageFilter.GaussianBlur(1.2))
    elif pen == 1:
        margin = margin.filter(ImageFilter.MaxFilter(3))
    angle, slant = generator.uniform(-0.15, 0.15), generator.uniform(-0.15, 0.15)
    stretch, size = math.exp(generator.uniform(-0.12, 0.12)), generator.uniform(44, 56)
    # of a canvas twice as large as the image, which halving smooths
    scale = max(margin.size) / size
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    matrix = numpy.array([[cos, slant * cos - sin], [sin, slant * sin + cos]]) * [
        stretch,
        1 / stretch,
    ]
    centre = numpy.array(margin.size) / 2 - matrix @ (SIDE + generator.uniform(-3, 3, 2))
    coefficients = (*matrix[0], centre[0], *matrix[1], centre[1])
    canvas = margin.transform(
        (2 * SIDE, 2 * SIDE),
        Image.Transform.AFFINE,
        coefficients,
        resample=Image.Resampling.BILINEAR,
    )
    return numpy.asarray(canvas.reduce(2))
