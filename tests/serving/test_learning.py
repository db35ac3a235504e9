"""Learning more classes from an artefact alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import smope
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.run.artefact import Artefact, describe, write_artefact
from smope.run.prepare import prepare
from smope.run.record import run_facts
from smope.serving.predict import Classifier

CLASSES = {
    "amber": (220, 160, 40),
    "blue": (60, 60, 200),
    "coral": (230, 110, 90),
    "dark": (30, 30, 30),
    "emerald": (40, 180, 90),
    "fuchsia": (200, 40, 180),
}
CLOSED_FORM = ["ridge", "ncm", "slda"]
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


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train and test with noisy pictures of six colours."""
    root, draw = tmp_path_factory.mktemp("colours"), numpy.random.default_rng(0)
    for name, colour in CLASSES.items():
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


@pytest.fixture(scope="module")
def run(root: Path) -> Callable[..., Run]:
    """(method, tasks, overrides) -> that run on `root`, or on another folder."""

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


@pytest.fixture
def images() -> Tensor:
    return torch.rand(20, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        *((method, "float64") for method in [*CLOSED_FORM, "smope_plus"]),
        ("smope", "float32"),
        ("coda", "float32"),
    ],
)
def test_it_is_the_next_task_of_the_uninterrupted_run(
    method: str, precision: str, run: Callable[..., Run], root: Path, tmp_path: Path
) -> None:
    """Bit for bit, from the artefact after two tasks and the images of the third."""
    whole = run(method, 3, root, f"trainer.precision={precision}")
    new = part(root, tmp_path / "new", "emerald", "fuchsia")
    classifier = loaded(whole.artefacts[1], tmp_path / "model")
    learned = classifier.learn(new / "train", validation=root / "test").artefact
    assert learned.class_names == list(CLASSES)
    assert learned.state.keys() == whole.state.keys()
    differing = [
        key for key in whole.state if not torch.equal(learned.state[key], whole.state[key])
    ]
    assert not differing
    assert learned.learning == whole.artefacts[2].learning
    accuracy = learned.lineage[0]["accuracy"]
    assert accuracy["measured_on"] == "18 validation images"
    assert 0 <= accuracy["old_after"] <= 1


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_a_finished_run_learns_what_a_longer_one_would_have(
    method: str, run: Callable[..., Run], root: Path, tmp_path: Path, images: Tensor
) -> None:
    """Both classes at once or one at a time, from a model that was made for four classes."""
    plain = ["method.width=null"] if method == "ridge" else []
    whole = loaded(run(method, 3, root, *plain).artefacts[-1], tmp_path / "whole")
    four = part(root, tmp_path / "four", *list(CLASSES)[:4])
    short = loaded(run(method, 2, four, *plain).artefacts[-1], tmp_path / "short")
    new = part(root, tmp_path / "new", "emerald", "fuchsia") / "train"
    at_once = short.learn(new)
    one_by_one = short.learn(new / "emerald").learn(new / "fuchsia")
    assert short.class_names == tuple(CLASSES)[:4]
    assert at_once.class_names == one_by_one.class_names == whole.class_names
    assert same_logits(at_once, whole, images)
    assert same_logits(one_by_one, whole, images)
    assert [entry["classes"] for entry in one_by_one.artefact.lineage] == [
        {"emerald": 10},
        {"fuchsia": 10},
    ]


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_more_images_of_a_class_add_to_its_sums(
    method: str, run: Callable[..., Run], root: Path, tmp_path: Path, images: Tensor
) -> None:
    plain = ["method.width=null"] if method == "ridge" else []
    whole = loaded(run(method, 3, root, *plain).artefacts[-1], tmp_path / "whole")
    less = shutil.copytree(root, tmp_path / "less")
    more = tmp_path / "more" / "blue"
    more.mkdir(parents=True)
    for index in range(5):
        shutil.move(less / "train" / "blue" / f"{index}.png", more)
    short = loaded(run(method, 3, less, *plain).artefacts[-1], tmp_path / "short")
    with pytest.raises(UserError, match=r"folder=.*more: the model knows blue already; write --mo"):
        short.learn(more.parent)
    learned = short.learn(more.parent, more_images=True)
    assert same_logits(learned, whole, images)
    assert learned.artefact.lineage[0]["more_images"] == ["blue"]
