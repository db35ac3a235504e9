"""Runs on pictures of six colours, whose models learn and forget."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

import smope
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.run.artefact import Artefact, describe, write_artefact
from smope.run.prepare import prepare
from smope.run.record import run_facts
from smope.serving.predict import Classifier

COLOURS = {
    "amber": (220, 160, 40),
    "blue": (60, 60, 200),
    "coral": (230, 110, 90),
    "dark": (30, 30, 30),
    "emerald": (40, 180, 90),
    "fuchsia": (200, 40, 180),
}
SMALL = [
    "experiment=smoke",
    "stream=folder",
    "stream.class_order=sorted",
    "backbone.image_size=8",
    "trainer.batch_size=8",
    "trainer.frozen_steps=0",
    "trainer.keep=learnable",
    "trainer.device=cpu",
    "trainer.precision=float64",
]
SIZES = {
    "ridge": ["method.width=64"],
    "smope_plus": ["method.width=64", "method.blocks=[0]"],
    "smope": ["method.blocks=[0]"],
    "coda": ["method.pool_size=7", "method.blocks=[0]"],
}


def draw_colours(root: Path) -> Path:
    """Folders train and test with noisy pictures of six colours."""
    draw = numpy.random.default_rng(0)
    for name, colour in COLOURS.items():
        for split, number in (("train", 10), ("test", 3)):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = draw.normal(0, 50, (12, 12, 3)) + numpy.array(colour)
                picture = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))
                picture.save(root / split / name / f"{index}.png")
    return root


def part(root: Path, folder: Path, *names: str) -> Path:
    """A tree with some of the classes."""
    for split in ("train", "test"):
        for name in names:
            shutil.copytree(root / split / name, folder / split / name)
    return folder


@dataclass(frozen=True)
class Run:
    """The artefact after each task of a run, and the state at its end."""

    artefacts: list[Artefact]
    state: dict[str, Tensor]


def runs_on(root: Path) -> Callable[..., Run]:
    """(method, tasks, folder, overrides) -> a run; made once."""

    @cache
    def train(method: str, tasks: int = 3, data: Path = root, *overrides: str) -> Run:
        words = [*SMALL, f"method={method}", *SIZES.get(method, []), *overrides]
        config = compose(
            read_overrides([*words, f"stream.root={data}", f"stream.num_tasks={tasks}"])
        )
        experiment, trainer = prepare(config)
        facts, artefacts = run_facts(experiment, trainer), []

        def keep() -> None:
            record = {**facts, **trainer.history.record()}
            state = {key: value.clone() for key, value in trainer.method.trained_state().items()}
            size = trainer.method.backbone.image_size
            artefacts.append(describe(record, len(artefacts) + 1, state, size, learnable=True))

        trainer.fit(on_task_end=keep)
        return Run(artefacts, trainer.method.trained_state())

    return train


def loaded(artefact: Artefact, folder: Path) -> Classifier:
    folder.mkdir(exist_ok=True)
    return smope.load(write_artefact(artefact, folder / "model.safetensors").file.path, "cpu")


def same_logits(first: Classifier, second: Classifier, images: Tensor) -> bool:
    return torch.allclose(first(images), second(images), rtol=1e-9, atol=1e-9)
