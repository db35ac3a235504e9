"""Models whose record makes no sense, signed with the right hash as a stranger could: one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smope.cli.main import main
from smope.run.artefact import read_model, to_bytes
from smope.serving.packing import for_inference

from .colours import Run, loaded

HUGE = 10**12
FIELDS: dict[str, dict[str, Any]] = {
    "class_names": {
        "names that are none": ["a", "b", 0.5, "d"],
        "no name": [],
        "more than classes": ["x"] * 7,
    },
    "num_classes": {"more than there is memory for": HUGE},
    "total_tasks": {"fewer than learned": 1, "more than there is memory for": HUGE},
    "eval_crop": {"nothing": 0.0, "nan": float("nan"), "more than all": 1e300},
    "precision": {"another": "float8"},
    "identity": {"nothing": {}},
    "lineage": {"numbers": [1], "without parent": [{"action": "learn", "classes": {"a": "b"}}]},
}
# Keys of groups: names, types and ranges are checked as those of a configuration are.
GROUPS: dict[str, dict[str, Any]] = {
    "method": {"width": ["9" * 40, -1], "exponents": [HUGE]},
    "backbone": {"name": [[]], "options": [[[]]], "image_size": [10**9]},
}


@pytest.fixture
def model(colour_run: Callable[..., Run], tmp_path: Path) -> Path:
    file = loaded(colour_run("ridge").artefacts[1], tmp_path / "model").artefact.file
    assert file is not None
    return file.path


@pytest.fixture
def answer(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Changes of an artefact -> the one line with which every command that reads it ends."""
    good = read_model(model)
    commands = {
        "predict": [str(model)],
        "pack": ["--out"],
        "forget": ["blue", "--out"],
        "export": ["--format", "torch", "--out"],
    }

    def lines(**changes: Any) -> str:
        model.write_bytes(to_bytes(replace(good, **changes)))
        before, answers = model.read_bytes(), set()
        for name, words in commands.items():
            out = [str(tmp_path / "out.pt2")] if words[-1] == "--out" else []
            capsys.readouterr()
            assert main([name, str(model), *words, *out]) in (1, 2)
            answers |= set(capsys.readouterr().err.splitlines())
            assert model.read_bytes() == before
            assert [path.name for path in model.parent.iterdir()] == [model.name]
        [line] = answers
        return line

    return lines


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_make_no_sense(name: str, answer: Callable[..., str]) -> None:
    for what, value in FIELDS[name].items():
        line = answer(**{name: value})
        assert f"model.safetensors: its record makes no sense ({name}" in line, what


def test_channels_that_are_none(model: Path, answer: Callable[..., str]) -> None:
    good = read_model(model).identity
    for key, value in (
        ("mean", [0.5, 0.5]),
        ("mean", HUGE),
        ("std", [1, "x", 1]),
        ("std", [0] * 3),
    ):
        assert f"makes no sense (identity.{key})" in answer(identity={**good, key: value})
    assert "makes no sense (identity.mean)" in answer(identity={**good, "mean": [10**400, 0, 0]})


@pytest.mark.parametrize("group", GROUPS)
def test_groups_that_make_no_sense(group: str, model: Path, answer: Callable[..., str]) -> None:
    good = getattr(read_model(model), group)
    for key, values in GROUPS[group].items():
        for value in values:
            line = answer(**{group: {**good, key: value}})
            assert line.startswith("smope: error: ")
            assert key in line


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("classifier.sums.triangle", lambda value: torch.cat([value, value])),
        ("classifier.sums.triangle", lambda value: value.half()),
        ("classifier.sums.classes", lambda value: value[:-1]),
        ("classifier.weight", lambda value: value.new_zeros(0)),
        ("classifier.weight", lambda value: None),
    ],
)
def test_tensors_of_other_sizes(
    name: str, change: Callable[[Any], Any], model: Path, colours: Path, tmp_path: Path, capsys: Any
) -> None:
    """For what learns of them and what forgets a class with its images."""
    good = read_model(model)
    state = {**good.state, name: change(good.state[name])}
    state = {key: value for key, value in state.items() if value is not None}
    model.write_bytes(to_bytes(replace(good, state=state)))
    before = model.read_bytes()
    for words in (
        ["learn", str(model), str(colours / "train" / "emerald")],
        ["forget", str(model), "blue", "--images", str(colours / "train")],
        ["forget", str(model), "blue"],
    ):
        capsys.readouterr()
        assert main([*words, "--device", "cpu"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert (
            "make no sense" in line or "its state does not fit" in line or "makes no sense" in line
        )
    assert [path.name for path in model.parent.iterdir()] == [model.name]
    assert model.read_bytes() == before


def test_statistics_of_no_images(
    colour_run: Callable[..., Run],
    colours: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A scatter of which no covariance can be made, and a plain model without a tensor."""
    file = loaded(colour_run("slda").artefacts[1], tmp_path / "slda").artefact.file
    assert file is not None
    good = read_model(file.path)
    [name] = [name for name in good.state if name.endswith("scatter")]
    nothing = {**good.state, name: torch.full_like(good.state[name], torch.nan)}
    file.path.write_bytes(to_bytes(replace(good, state=nothing)))
    capsys.readouterr()
    words = ["learn", str(file.path), str(colours / "train" / "emerald"), "--device", "cpu"]
    assert main(words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "model: its content makes no sense (" in line
    plain = for_inference(good)
    for key in plain.state:
        less = {other: value for other, value in plain.state.items() if other != key}
        file.path.write_bytes(to_bytes(replace(plain, state=less)))
        assert main(["forget", str(file.path), "blue", "--device", "cpu"]) == 2
        assert f"does not fit StreamingLDA ({key} differs" in capsys.readouterr().err
