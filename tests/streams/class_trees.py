"""Small copies of data sets with 200 known classes: two training images and one test image a
class, all different.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy
import pyarrow
from PIL import Image
from pyarrow import parquet

from smope.streams.source import Source

NUM_CLASSES = 200
NUMBERS = {"train": (0, 1), "test": (2,)}  # of a class's images


def jpeg(seed: int) -> bytes:
    picture = numpy.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG")
    return buffer.getvalue()


PICTURES = [jpeg(seed) for seed in range(3 * NUM_CLASSES)]


def content(class_id: int, number: int) -> bytes:
    return PICTURES[3 * class_id + number]


def write(path: Path, class_id: int, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(class_id, number))
    return path


def write_classes(
    place: Path, names: Sequence[str], numbers: Sequence[int], inner: str = ""
) -> Path:
    """A folder a class, called by its name, with the images of these numbers in it or in its
    folder `inner`.
    """
    for class_id, name in enumerate(names):
        for number in numbers:
            write(place / name / inner / f"{name}_{number}.JPEG", class_id, number)
    return place


def write_parquet(
    place: Path,
    names: Sequence[str],
    labels: Sequence[str] | None,
    splits: dict[str, str] | None = None,
) -> Path:
    """As the Hub has it: `names` by class id, `labels` the names in the order of the file's
    labels; None: not told.
    """
    place.mkdir(parents=True)
    told = list(names) if labels is None else list(labels)
    features = {"image": {"_type": "Image"}, "label": {"names": told, "_type": "ClassLabel"}}
    metadata = (
        {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        if labels is not None
        else None
    )
    for split, called in (splits or {"train": "train", "test": "test"}).items():
        rows = [(class_id, number) for number in NUMBERS[split] for class_id in range(NUM_CLASSES)]
        columns = {
            "image": [{"bytes": content(*row), "path": None} for row in rows],
            "label": [told.index(names[class_id]) for class_id, _ in rows],
        }
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        parquet.write_table(table, place / f"{called}-00000-of-00001-1359597a978bc4fa.parquet")
    return place


def check_whole(source: Source) -> None:
    """Every image once, in its split and with its class."""
    for split, images in (("train", source.train), ("test", source.test)):
        found = []
        for target, image in zip(images.targets, images.images, strict=True):
            assert type(target) is int
            found.append((target, image.read_bytes() if isinstance(image, Path) else image))
        expected = [
            (class_id, content(class_id, n))
            for class_id in range(NUM_CLASSES)
            for n in NUMBERS[split]
        ]
        assert sorted(found) == sorted(expected)
