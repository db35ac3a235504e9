"""A run on a folder of pictures of many sizes, whose data set may then go."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from smope.cli.main import main

from .colours import Run, draw_colours, runs_on

CLASSES = {
    "red fish": (200, 60, 60),
    "green": (60, 200, 60),
    "blue": (60, 60, 200),
    "yellow": (190, 190, 60),
}
SMALL = [
    "experiment=smoke",
    "stream=folder",
    "stream.num_tasks=2",
    "backbone.image_size=16",
    "trainer.batch_size=8",
    "trainer.frozen_steps=0",
    "method.blocks=[0,3]",
]


def draw_pictures(root: Path) -> Path:
    """Noisy pictures in the colours of their classes, none square, of few pixels or many."""
    draw = numpy.random.default_rng(0)
    for name, colour in CLASSES.items():
        for split, number in (("train", 12), ("test", 5)):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                size = draw.integers(10, 60, 2)
                pixels = draw.normal(0, 40, (*size, 3)) + numpy.array(colour)
                picture = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))
                picture.save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images of the run, class folders."""
    return draw_pictures(tmp_path_factory.mktemp("pictures")) / "test"


@pytest.fixture(scope="session")
def run_dir(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its training images are gone."""
    path = tmp_path_factory.mktemp("served") / "run"
    root = shutil.copytree(pictures.parent, path.parent / "images")
    assert main(["train", *SMALL, f"stream.root={root}", f"run_dir={path}"]) == 0
    shutil.rmtree(root)
    return path


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train and test with six classes."""
    return draw_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def colour_run(colours: Path) -> Callable[..., Run]:
    """(method, tasks, folder, overrides) -> that run."""
    return runs_on(colours)


@pytest.fixture
def images() -> Tensor:
    """Images of the size that these runs have."""
    return torch.rand(20, 3, 8, 8, dtype=torch.float64)
