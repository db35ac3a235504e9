"""Learning more classes from an artefact alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smope.errors import UserError

from .colours import COLOURS, Run, loaded, part, same_logits

CLOSED_FORM = ["ridge", "ncm", "slda"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *((method, ["trainer.precision=float64"]) for method in [*CLOSED_FORM, "smope_plus"]),
        ("smope_plus", ["trainer.precision=float64", "method.later_epochs_factor=1"]),
        ("smope", ["trainer.precision=float32"]),
        ("rsiat", ["trainer.precision=float32", "method.blocks=[0,1]"]),
        ("tuna", ["trainer.precision=float32", "method.blocks=[0,1]"]),
        ("ease", ["trainer.precision=float32", "method.blocks=[0,1]"]),
        ("inflora", ["trainer.precision=float32", "method.blocks=[0,1]"]),
        ("min", ["trainer.precision=float32", "method.blocks=[0,1]", "method.width=64"]),
        ("coda", ["trainer.precision=float32", "stream.crop_scale=null", "stream.flip=false"]),
    ],
)
def test_it_is_the_next_task_of_the_uninterrupted_run(
    method: str,
    settings: list[str],
    colour_run: Callable[..., Run],
    colours: Path,
    tmp_path: Path,
) -> None:
    """Bit for bit, from the artefact after two tasks and the images of the third."""
    whole = colour_run(method, 3, colours, *settings)
    new = part(colours, tmp_path / "new", "emerald", "fuchsia")
    classifier = loaded(whole.artefacts[1], tmp_path / "model")
    learned = classifier.learn(new / "train", validation=colours / "test").artefact
    assert learned.class_names == list(COLOURS)
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
    method: str, colour_run: Callable[..., Run], colours: Path, tmp_path: Path, images: Tensor
) -> None:
    """Both classes at once or one at a time, from a model that was made for four classes."""
    plain = ["method.width=null"] if method == "ridge" else []
    whole = loaded(colour_run(method, 3, colours, *plain).artefacts[-1], tmp_path / "whole")
    four = part(colours, tmp_path / "four", *list(COLOURS)[:4])
    short = loaded(colour_run(method, 2, four, *plain).artefacts[-1], tmp_path / "short")
    new = part(colours, tmp_path / "new", "emerald", "fuchsia") / "train"
    at_once = short.learn(new)
    one_by_one = short.learn(new / "emerald").learn(new / "fuchsia")
    assert short.class_names == tuple(COLOURS)[:4]
    assert at_once.class_names == one_by_one.class_names == whole.class_names
    assert same_logits(at_once, whole, images)
    assert same_logits(one_by_one, whole, images)
    assert [entry["classes"] for entry in one_by_one.artefact.lineage] == [
        {"emerald": 10},
        {"fuchsia": 10},
    ]


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_more_images_of_a_class_add_to_its_sums(
    method: str, colour_run: Callable[..., Run], colours: Path, tmp_path: Path, images: Tensor
) -> None:
    plain = ["method.width=null"] if method == "ridge" else []
    whole = loaded(colour_run(method, 3, colours, *plain).artefacts[-1], tmp_path / "whole")
    less = shutil.copytree(colours, tmp_path / "less")
    more = tmp_path / "more" / "blue"
    more.mkdir(parents=True)
    for index in range(5):
        shutil.move(less / "train" / "blue" / f"{index}.png", more)
    short = loaded(colour_run(method, 3, less, *plain).artefacts[-1], tmp_path / "short")
    with pytest.raises(UserError, match=r"folder=.*more: the model knows blue already; write --mo"):
        short.learn(more.parent)
    learned = short.learn(more.parent, more_images=True)
    assert same_logits(learned, whole, images)
    assert learned.artefact.lineage[0]["more_images"] == ["blue"]
