"""scikit-learn's scanned handwritten digits: 1,797 images of 8 by 8 pixels in 17 gray levels, ten
classes.

Bright ink on a dark ground, as the data set has it.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from smope.streams.source import ImageSet, Source

CLASS_NAMES = tuple("0123456789")
SIDE = 32


def load() -> Source:
    """The digits as 32 by 32 RGB; every fifth image of each class is a test image."""
    table = read_table()
    scans, targets = table[:, :-1].reshape(-1, 8, 8), table[:, -1].tolist()
    splits: dict[str, list[int]] = {"train": [], "test": []}
    seen = [0] * 10
    for index, target in enumerate(targets):
        seen[target] += 1
        splits["train" if seen[target] % 5 else "test"].append(index)
    return Source(
        name="digits",
        class_names=CLASS_NAMES,
        train=_image_set(scans, targets, splits["train"]),
        test=_image_set(scans, targets, splits["test"]),
    )


def read_table() -> numpy.ndarray:
    """A row (65 uint8) for each scan: its 64 values and its digit."""
    return _table().copy()


@cache
def _table() -> numpy.ndarray:
    """Read from scikit-learn's own file, since importing scikit-learn takes as long as torch."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return numpy.loadtxt(file, delimiter=",").astype(numpy.uint8)
    from sklearn.datasets import load_digits  # its file has moved

    digits: Any = load_digits()
    return numpy.column_stack([digits.data, digits.target]).astype(numpy.uint8)


def _image_set(scans: numpy.ndarray, targets: list[int], chosen: list[int]) -> ImageSet:
    return ImageSet([targets[i] for i in chosen], [enlarged(scans[i]) for i in chosen])


def enlarged(scan: numpy.ndarray) -> numpy.ndarray:
    """A scan (8, 8) of values 0..16 as uint8 (32, 32, 3) of values 0..255, bilinear in between."""
    gray = Image.fromarray(scan.astype(numpy.float32)).resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR
    )
    values = numpy.rint(numpy.asarray(gray) * (255 / 16)).astype(numpy.uint8)
    return numpy.repeat(values[:, :, None], 3, axis=2)
