"""What a resumed run may have otherwise and what not; and runs that are asked to repeat exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smope.cli.main import main
from smope.storage.run_directory import RunDirectory
from smope.training.checkpoint import list_checkpoints, read_checkpoint

from .test_hostile import QUICK, contents, goes_on, in_step, record, refused

pytestmark = pytest.mark.usefixtures("few_digits")


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("settings") / "whole"
    assert main(["train", *QUICK, f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("settings") / "stopped"
    with in_step(1, 3, interrupt):
        assert main(["train", *QUICK, f"run_dir={run_dir}"]) == 130
    return run_dir


@pytest.fixture
def run_dir(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def edit(run_dir: Path, **changes: Any) -> None:
    """Change config.yaml by hand: group__key=value."""
    path = run_dir / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            config[group][name] = value
        else:
            config[key] = value
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def test_every_changed_key_is_named(
    run_dir: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run_dir, seed=1, trainer__learning_rate=0.5, method__align=True)
    before = contents(run_dir)
    line = refused(capsys, 2, "train", f"resume={run_dir}")
    for text in (
        "seed=1 (was 0)",
        "trainer.learning_rate=0.5 (was 0.005)",
        "method.align=true (was false)",
    ):
        assert text in line
    assert "put back what it was, or start a new run" in line
    assert contents(run_dir) == before
    edit(run_dir, seed=0, trainer__learning_rate=0.005, method__align=False)
    goes_on(run_dir, whole)


def test_an_override_that_changes_the_computation(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run_dir)
    line = refused(capsys, 2, "train", f"resume={run_dir}", "trainer.epochs=9", "seed=3")
    assert (
        "but seed=3, trainer.epochs=9 differs from it" in line
        or "but trainer.epochs=9, seed=3 differs" in line
    )
    assert "(where things are, workers, device, checkpoints and tracker may change)" in line
    assert contents(run_dir) == before


MAY = {
    "trainer.num_workers=1": ("trainer", "num_workers", 1),
    "trainer.eval_batch_size=7": ("trainer", "eval_batch_size", 7),
    "trainer.checkpoint_steps=1": ("trainer", "checkpoint_steps", 1),
    "trainer.checkpoint_minutes=1": ("trainer", "checkpoint_minutes", 1.0),
    "trainer.device=auto": ("trainer", "device", "auto"),
}


@pytest.mark.parametrize("override", MAY)
def test_what_may_change_is_said_and_moves_no_number(
    override: str, run_dir: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group, key, value = MAY[override]
    if override.endswith("auto") and torch.cuda.is_available():
        pytest.skip("another device has other last digits")
    assert main(["train", f"resume={run_dir}", override]) == 0
    assert f"now with {group}.{key}=" in capsys.readouterr().out
    assert record(run_dir)["accuracy_matrix"] == record(whole)["accuracy_matrix"]
    assert (
        yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))[group][key] == value
    )


def test_who_watches_and_what_it_is_called_may_change(
    run_dir: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["tracker=wandb", "tracker.project=mine", "tracker.mode=disabled", "name=other"]
    assert main(["train", f"resume={run_dir}", *more]) == 0
    said = capsys.readouterr().out
    assert "now with tracker._target_=smope.trackers.wandb.WandbTracker" in said
    assert "now with name=other (was smoke)" in said
    assert record(run_dir)["accuracy_matrix"] == record(whole)["accuracy_matrix"]
    saved = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    assert (saved["name"], saved["tracker"]["project"], saved["tracker"]["mode"]) == (
        "other",
        "mine",
        "disabled",
    )


def test_a_key_of_a_tracker_that_is_not_chosen(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, 2, "train", f"resume={run_dir}", "tracker.project=mine")
    assert "unknown key tracker.project=mine; this tracker has no keys" in line


def test_deterministic_runs_repeat_and_say_so(tmp_path: Path, whole: Path) -> None:
    smope = ["method=smope", "method.blocks=[0,2]", "trainer.deterministic=true"]
    runs = [tmp_path / name for name in ("first", "second")]
    for number, path in enumerate(runs):
        torch.manual_seed(number)
        assert main(["train", *QUICK, *smope, f"run_dir={path}"]) == 0
        assert torch.are_deterministic_algorithms_enabled()
    first, second = (record(path) for path in runs)
    for values in (first, second):
        values["reference"].pop("seconds")
    timed = ("seconds", "images_per_second", "waiting_share", "cost", "config", "launches")
    assert {k: v for k, v in first.items() if k not in timed} == {
        k: v for k, v in second.items() if k not in timed
    }
    states = [read_checkpoint(list_checkpoints(RunDirectory(path))[-1]).state for path in runs]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert first["deterministic"] is True
    assert first["config"]["trainer"]["deterministic"] is True


def test_a_run_that_was_not_asked_to_repeat_says_so_too(tmp_path: Path) -> None:
    """Also right after one that was, in the same process."""
    quick = [*QUICK, "method=ncm"]
    for wanted in ("true", "false"):
        path = tmp_path / wanted
        assert main(["train", *quick, f"trainer.deterministic={wanted}", f"run_dir={path}"]) == 0
        assert json.loads((path / "run.json").read_text(encoding="utf-8"))["deterministic"] is (
            wanted == "true"
        )
    assert not torch.are_deterministic_algorithms_enabled()
