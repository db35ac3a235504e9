"""Whole runs through the command line: that they repeat, and how they are continued."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import smope
from smope.cli.main import main
from smope.methods.base import TaskSpan
from smope.methods.ncm import NearestClassMean
from smope.methods.smope import SMoPE

from .small_runs import QUICK, TINY, contents, final_state, losses, record, train

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def content_hash(model: Path) -> str:
    with safe_open(model, framework="pt") as file:
        return file.metadata()["sha256"]


def assert_same_result(first: Path, second: Path) -> None:
    old, new = final_state(first), final_state(second)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)
    assert losses(first) == losses(second)
    for key in (
        "accuracy_matrix",
        "final_average_accuracy",
        "forgetting",
        "sample_weighted_accuracy",
        "config_hash",
    ):
        assert record(first)[key] == record(second)[key], key


@pytest.mark.parametrize("kept", ["nothing", "all"])
def test_what_is_recorded_changes_no_number_of_run_json(
    kept: str, quick: Path, tmp_path: Path
) -> None:
    other = train(tmp_path / kept, *QUICK, f"trainer.record={kept}")
    assert (other / "analysis").exists() == (kept == "all")
    assert_same_result(quick, other)
    ours, theirs = without_times(record(quick)), without_times(record(other))
    assert ours["config"]["trainer"].pop("record") == "auto"
    assert theirs["config"]["trainer"].pop("record") == kept
    assert ours == theirs


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    """run.json without seconds, what is divided by them, memory, how it was started, and where it
    is kept.
    """
    found.pop("launches")
    found["reference"].pop("seconds")
    for key in ("seconds", "images_per_second", "waiting_share", "peak_memory_bytes"):
        found.pop(key, None)
        found["cost"].pop(key, None)
    found["config"].pop("run_dir")
    return found


def test_the_same_command_gives_the_same_numbers(quick: Path, folder: Path) -> None:
    torch.manual_seed(123)
    assert_same_result(quick, train(folder / "again", *QUICK))


def test_from_python_the_record_is_returned(folder: Path) -> None:
    run_dir = folder / "python"
    assert smope.train(*TINY, "method=ncm", f"run_dir={run_dir}") == record(run_dir)


def test_another_seed_gives_others(quick: Path, folder: Path) -> None:
    other = train(folder / "other", *TINY, "seed=1", "method=ncm")
    assert record(other)["class_order"] != record(quick)["class_order"]
    assert record(other)["config_hash"] != record(quick)["config_hash"]
    assert record(other)["method"] == "ncm"
    assert record(other)["trainable_parameters"] == {"prompt": 0, "classifier": 0}


def test_a_directory_in_use_is_refused_and_untouched(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(quick)
    assert main(["train", *QUICK, f"run_dir={quick}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"run_dir={quick}: is not empty" in line
    assert f"smope train resume={quick}" in line
    assert contents(quick) == before


def interrupt(monkeypatch: pytest.MonkeyPatch, method: type, task: int) -> None:
    """Ctrl-C at the end of `task`, after its last training step."""
    end_task = method.end_task

    def stop(self: Any, span: TaskSpan, batches: Any) -> None:
        if span.index == task:
            raise KeyboardInterrupt
        end_task(self, span, batches)

    monkeypatch.setattr(method, "end_task", stop)


def test_resumed_in_the_second_task_it_ends_the_same(
    quick: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = folder / "interrupted"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, SMoPE, task=1)
        assert main(["train", *QUICK, f"run_dir={run_dir}"]) == 130
    stopped = record(run_dir)
    assert stopped["status"] == "interrupted"
    assert stopped["accuracy_matrix"] == [record(quick)["accuracy_matrix"][0], [None, None]]
    assert [row["task"] for row in losses(run_dir)] == ["0", "0", "1"]
    assert f"smope train resume={run_dir}" in capsys.readouterr().out
    assert main(["train", f"resume={run_dir}"]) == 0
    assert "resuming" in capsys.readouterr().out
    assert_same_result(quick, run_dir)
    assert content_hash(run_dir / "model.safetensors") == content_hash(quick / "model.safetensors")
    resumed = record(run_dir)
    assert resumed["status"] == "finished"
    assert len(resumed["seconds"]["per_task"]) == 2
    assert {**resumed["config"], "run_dir": None, "resume": None} == {
        **record(quick)["config"],
        "run_dir": None,
    }


def test_resumed_in_the_first_task_it_starts_again(folder: Path) -> None:
    run_dir, overrides = folder / "early", [*TINY, "method=ncm"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, NearestClassMean, task=0)
        assert main(["train", *overrides, f"run_dir={run_dir}"]) == 130
    assert record(run_dir)["accuracy_matrix"] == [[None, None], [None, None]]
    assert record(run_dir)["final_average_accuracy"] is None
    assert main(["train", f"resume={run_dir}"]) == 0
    assert record(run_dir)["status"] == "finished"
    whole = train(folder / "whole", *overrides)
    assert record(run_dir)["accuracy_matrix"] == record(whole)["accuracy_matrix"]


def test_a_finished_run_has_nothing_to_resume(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(quick)
    assert main(["train", f"resume={quick}"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert contents(quick) == before


def test_a_dry_run_shows_all_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    assert main(["train", *QUICK, "--dry-run", f"run_dir={folder / 'dry'}"]) == 0
    text = capsys.readouterr().out
    assert "nothing was trained or written" in text
    assert "training 12,800 prompt and 1,290 classifier parameters" in text
    steps = [
        line.split()[:4] for line in text.splitlines() if re.match(r" +\d +\d+ +\d+ +\d+  ", line)
    ]
    assert steps == [["1", "184", "44", "22"], ["2", "180", "42", "11"]]
    assert contents(folder) == before
    assert not (folder / "dry").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.batch_size=200"],
            r"trainer\.batch_size=200 is larger than the 184 training images of task 1",
        ),
        (["trainer.frozen_steps=11"], r"trainer\.frozen_steps=11 must be below the steps"),
        (["method.blocks=[0,9]"], r"method\.blocks must be different numbers in 0\.\.7"),
    ],
)
def test_what_only_backbone_and_data_can_tell_stops_before_anything_is_written(
    overrides: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = folder / "refused"
    assert main(["train", *QUICK, *overrides, f"run_dir={run_dir}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not run_dir.exists()
