from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from smope.streams.source import ImageSet, Source
from smope.streams.stream import Stream, build_stream

torch.set_num_threads(1)


def pixels(seed: int, width: int = 32, height: int = 32) -> numpy.ndarray:
    """A smooth random picture, so that lossy formats keep it recognisable."""
    coarse = numpy.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    return numpy.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_image(path: Path, seed: int = 0, width: int = 32, height: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, width, height)).save(path)
    return path


@pytest.fixture
def source() -> Source:
    """Ten classes, their images interleaved: 40 for training, 20 for testing, 32 by 32 pixels."""
    splits = {
        split: ImageSet([i * 7 % 10 for i in range(n)], [pixels(start + i) for i in range(n)])
        for split, n, start in (("train", 40, 0), ("test", 20, 100))
    }
    return Source("pictures", tuple("abcdefghij"), splits["train"], splits["test"])


@pytest.fixture(name="pixels")
def pixels_function() -> Callable[..., numpy.ndarray]:
    return pixels


@pytest.fixture(name="write_image")
def write_image_function() -> Callable[..., Path]:
    return write_image


Build = Callable[..., Stream]


@pytest.fixture
def build(source: Source) -> Build:
    def build_it(**changes: object) -> Stream:
        options = {
            "image_size": 32,
            "seed": 0,
            "num_tasks": 5,
            "classes_per_task": None,
            "class_order": "paper",
            "crop_scale": [0.5, 1.0],
            "flip": True,
            "eval_crop": 1.0,
        }
        return build_stream(**{"source": source} | options | changes)  # type: ignore[arg-type]

    return build_it
