"""Withdrawing classes from an artefact, and undoing a lesson."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smope.cli.main import main
from smope.errors import UserError
from smope.run.artefact import read_model
from smope.serving.predict import Classifier

from .colours import COLOURS, Run, loaded, part

FIRST_FOUR = list(COLOURS)[:4]
EXACT = {
    "ridge": ["method.width=null"],
    "ridge on few random features": ["method=ridge", "method.width=50"],
    "slda": [],
    "ncm": [],
    "fecam": ["method.covariance=shared"],
    "layup": ["method.layers=2"],
    "klda with random features": ["method.width=40"],
}


def differences(first: Classifier, second: Classifier, images: Tensor) -> float:
    """The largest difference of logits, relative to the largest logit."""
    expected = second(images)
    return ((first(images) - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", EXACT)
def test_with_its_images_a_class_was_never_there(
    name: str,
    colour_run: Callable[..., Run],
    colours: Path,
    tmp_path: Path,
    images: Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Equal to a model of the other classes alone, whether rows or sums are kept; and further
    lessons start from the same.
    """
    method, settings = name.partition(" ")[0], EXACT[name]
    six = loaded(colour_run(method, 3, colours, *settings).artefacts[-1], tmp_path / "six")
    four = part(colours, tmp_path / "four", "amber", "blue", "coral", "fuchsia")
    never = loaded(colour_run(method, 2, four, *settings).artefacts[-1], tmp_path / "never")
    if "random" in name:  # a shorter run draws another projection
        never = loaded(colour_run(method, 3, colours, *settings).artefacts[0], tmp_path / "two")
        never = never.learn(part(four, tmp_path / "later", "coral", "fuchsia") / "train")
    with caplog.at_level(logging.INFO):
        left = six.forget(["emerald", "dark"], images=colours / "train")
    assert left.class_names == never.class_names == ("amber", "blue", "coral", "fuchsia")
    assert differences(left, never, images) < 1e-6
    again = part(colours, tmp_path / "again", "dark") / "train"
    assert differences(left.learn(again), never.learn(again), images) < 1e-6
    if method != "ncm":
        assert "nothing of them remains" in caplog.text
        with pytest.raises(UserError, match="these are not the images that the class was learned"):
            six.forget(["dark"], images=colours / "test")
    assert six.class_names == tuple(COLOURS)


@pytest.mark.parametrize(
    "method", ["ridge", "slda", "smope", "smope_plus", "coda", "hide", "rsiat", "ease", "min"]
)
def test_without_its_images_the_other_logits_stay(
    method: str,
    colour_run: Callable[..., Run],
    colours: Path,
    tmp_path: Path,
    images: Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The row is gone from every tensor with classes, and what remains is said."""
    six = loaded(colour_run(method, 3, colours).artefacts[-1], tmp_path / "six")
    with caplog.at_level(logging.INFO):
        left = six.forget(["blue"])
    others = [0, 2, 3, 4, 5]
    torch.testing.assert_close(left(images), six(images)[:, others], rtol=1e-9, atol=1e-9)
    shares = method in ("ridge", "slda", "smope_plus")
    assert ("still part of the sums that all classes" in caplog.text) == shares
    assert ("out of which they cannot be taken" in caplog.text) == (method == "min")
    assert ("what training on their images changed" in caplog.text) == (
        method not in ("ridge", "slda")
    )
    before, after = six.artefact.state, left.artefact.state
    cut = [key for key in before if before[key].shape != after[key].shape]
    assert any("classifier" in key or "ridge" in key for key in cut)
    assert all(5 in after[key].shape and 6 in before[key].shape for key in cut)
    assert left.artefact.lineage[-1]["classes"] == 1
    assert "blue" not in str(left.artefact.lineage) + str(left.artefact.class_names)
    learned = left.learn(part(colours, tmp_path / "again", "blue") / "train")
    assert learned.class_names == ("amber", "coral", "dark", "emerald", "fuchsia", "blue")


def test_stored_features_of_a_class_are_forgotten_without_its_images(
    colour_run: Callable[..., Run],
    colours: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = colour_run("smope_plus", 3, colours, "method.later_epochs_factor=1")
    six = loaded(run.artefacts[-1], tmp_path / "six")
    with caplog.at_level(logging.INFO):
        left = six.forget(["blue"])
    others = [0, 2, 3, 4, 5]
    before, after = six.artefact.state, left.artefact.state
    assert torch.equal(after["stored.features"], before["stored.features"][others])
    assert torch.equal(after["stored.images"], before["stored.images"][others])
    assert not torch.equal(after["ridge.weight"], before["ridge.weight"][others]), "fitted anew"
    assert "still part of the sums" not in caplog.text
    assert "what training on their images changed" in caplog.text
    learned = left.learn(part(colours, tmp_path / "again", "blue") / "train")
    assert learned.class_names[-1] == "blue"


def test_a_lesson_is_undone(
    colour_run: Callable[..., Run],
    colours: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = loaded(colour_run("ncm", 3, colours).artefacts[1], tmp_path / "model").artefact.file
    assert first is not None
    path, before = first.path, first.path.read_bytes()
    new = part(colours, tmp_path / "new", "emerald") / "train"
    assert main(["learn", str(path), str(new), "--device", "cpu"]) == 0
    second = path.with_name("model-v2.safetensors")
    assert main(["forget", str(second), "--undo"]) == 0
    assert "undone: the lesson of emerald" in capsys.readouterr().out
    third = path.with_name("model-v3.safetensors")
    assert read_model(third).file.sha256 == first.sha256  # type: ignore[union-attr]
    assert path.read_bytes() == before

    def answer(*words: str) -> str:
        assert main(["forget", *words]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "no lesson: this model is as its run left it" in answer(str(path), "--undo")
    path.rename(tmp_path / "elsewhere.safetensors")
    assert "model.safetensors is not there, and the model before the lesson is in no other" in (
        answer(str(second), "--undo")
    )
    other = ["--parent", str(second), "--undo"]
    assert "is not the model that the lesson was added to" in answer(str(second), *other)
    elsewhere = ["--parent", str(tmp_path / "elsewhere.safetensors"), "--out", str(path)]
    assert main(["forget", str(second), "--undo", *elsewhere]) == 0
    assert main(["forget", str(second), "emerald"]) == 0
    fourth = path.with_name("model-v4.safetensors")
    assert "no lesson: it has forgotten since" in answer(str(fourth), "--undo")
    assert "CLASS=embrald: the model knows no such class; did you mean emerald?" in answer(
        str(second), "embrald"
    )
    assert "a model without any class is none" in answer(str(path), *FIRST_FOUR)
