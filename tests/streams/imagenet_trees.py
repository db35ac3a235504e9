"""Small copies of ImageNet-R and ImageNet-A in the layouts that users have: 200 classes, tiny JPEG
files.
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

from smope.streams.imagenet_variants import Variant

STYLES = ("art_0.jpg", "cartoon_3.jpg", "misc_21.jpg", "sketch_7.jpg", "toy_12.JPEG")


def wnids(variant: Variant) -> list[str]:
    """200 of them, the first as published."""
    return [variant.first_wnid, *(f"n1{number:07d}" for number in range(1, 200))]


def jpeg(seed: int) -> bytes:
    picture = numpy.random.default_rng(seed % 7).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG")
    # what comes after the end of a JPEG is not decoded
    return buffer.getvalue() + str(seed).encode()


PICTURES = [jpeg(seed) for seed in range(200 * len(STYLES))]


def content(class_id: int, number: int) -> bytes:
    return PICTURES[class_id * len(STYLES) + number]


def write_classes(
    place: Path, names: Sequence[str], numbers: Sequence[int] = range(len(STYLES))
) -> Path:
    """A folder a name, with the images of these numbers."""
    for class_id, name in enumerate(names):
        (place / name).mkdir(parents=True)
        for number in numbers:
            (place / name / STYLES[number]).write_bytes(content(class_id, number))
    return place


def write_archive(root: Path, variant: Variant) -> Path:
    """What the archive unpacks to, with two names that are the same."""
    place = write_classes(root / variant.top, wnids(variant))
    words = ["great_white_shark" if i in (3, 5) else f"name {i}" for i in range(200)]
    lines = [f"{wnid} {word} " for wnid, word in zip(wnids(variant), words, strict=True)]
    # as it is published: some lines on the data set, the classes, a blank after each
    (place / "README.txt").write_text(
        "\r\n".join(["The data set", "n0 is no class", "", *lines]), newline=""
    )
    return place


def write_hub_texts(place: Path, names: Sequence[str], shards: int = 2) -> Path:
    """As axiong/imagenet-r: one split, class ids as text, with file names."""
    rows = [(class_id, number) for number in range(len(STYLES)) for class_id in range(len(names))]
    table = pyarrow.table(
        {
            "image": [{"bytes": content(*row), "path": STYLES[row[1]]} for row in rows],
            "wnid": [names[class_id] for class_id, _ in rows],
            "class_name": [f"word {class_id}" for class_id, _ in rows],
        }
    )
    return write_shards(place / "test", "test", table, shards)


def write_hub_ids(
    place: Path, names: Sequence[str], splits: Sequence[str], named: bool = True
) -> Path:
    """As barkermrl/imagenet-a: numbers that the metadata names, no file names."""
    info = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
    for split in splits:
        rows = [
            (class_id, number) for class_id in range(len(names)) for number in range(len(STYLES))
        ]
        images = [{"bytes": content(*row), "path": None} for row in rows]
        table = pyarrow.table({"image": images, "label": [class_id for class_id, _ in rows]})
        if named:
            table = table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})
        write_shards(place / "data", split, table, 1)
    return place


def write_shards(place: Path, split: str, table: pyarrow.Table, shards: int) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    step = -(-len(table) // shards)
    for shard in range(shards):
        part = table.slice(shard * step, step)
        parquet.write_table(
            part, place / f"{split}-{shard:05d}-of-{shards:05d}-0123456789abcdef.parquet"
        )
    return place
