"""Whole runs through the command line: what a run directory holds, that runs repeat, and how they
are continued.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import smope
from smope.cli.main import main
from smope.methods.base import TaskSpan
from smope.methods.ncm import NearestClassMean
from smope.methods.smope import SMoPE
from smope.metrics.accuracy_matrix import (
    cumulative_average_accuracy,
    final_average_accuracy,
    forgetting,
)
from smope.run import reevaluate
from smope.storage.run_directory import RunDirectory
from smope.training.trainer import Trainer

# Next to nothing to compute: for the runs of which there have to be several.
TINY = ["experiment=smoke", "backbone.image_size=8", "trainer.batch_size=64"]
QUICK = [*TINY, "method.blocks=[0,3]"]


def train(run_dir: Path, *overrides: str) -> Path:
    assert main(["train", *overrides, f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """experiment=smoke as it is."""
    return train(folder / "smoke", "experiment=smoke")


@pytest.fixture(scope="module")
def quick(folder: Path) -> Path:
    return train(folder / "quick", *QUICK)


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))


def final_state(run_dir: Path) -> dict[str, Tensor]:
    return load_file(sorted((run_dir / "checkpoints").iterdir())[-1])


def content_hash(model: Path) -> str:
    with safe_open(model, framework="pt") as file:
        return file.metadata()["sha256"]


def losses(run_dir: Path) -> list[dict[str, str]]:
    """metrics.csv without how long it took."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "images_per_second"}
            for row in csv.DictReader(file)
        ]


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


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


def test_the_run_directory(finished: Path) -> None:
    assert sorted(contents(finished)) == [
        "analysis/images.safetensors",
        "analysis/mistakes.safetensors",
        "analysis/task-001.safetensors",
        "analysis/task-002.safetensors",
        "checkpoints/001-00000022.safetensors",
        "checkpoints/002-00000000.safetensors",
        "config.yaml",
        "metrics.csv",
        "model.safetensors",
        "model_card.md",
        "run.json",
        "train.log",
    ]
    log = (finished / "train.log").read_text(encoding="utf-8")
    assert "SMoPE on digits: 10 classes in 2 tasks, seed 0" in log
    assert re.search(r"task 2/2: accuracy \d+\.\d %", log)
    assert re.search(r"final average accuracy \(FAA\) +\d+\.\d\d %", log)


def test_every_key_of_the_record(finished: Path) -> None:
    found = record(finished)
    types = {
        "format_version": int,
        "config": dict,
        "versions": dict,
        "seed": int,
        "class_order": list,
        "accuracy_matrix": list,
        "final_average_accuracy": float,
        "cumulative_average_accuracy": float,
        "average_incremental_accuracy": float,
        "forgetting": float,
        "sample_weighted_accuracy": float,
        "status": str,
        "method": str,
        "stream": dict,
        "class_names": list,
        "tasks": list,
        "evaluated_on": str,
        "config_hash": str,
        "trainable_parameters": dict,
        "seconds": dict,
        "images_per_second": float,
        "backbone": dict,
        "cost": dict,
        "world_size": int,
        "launches": list,
        "device_name": str,
    }
    assert {key: type(found.get(key)) for key in types} == types
    assert (found["status"], found["method"], found["seed"], found["evaluated_on"]) == (
        "finished",
        "smope",
        0,
        "test",
    )
    assert re.fullmatch(r"[0-9a-f]{12}", found["config_hash"])
    assert {"python", "smope", "torch", "timm"} <= set(found["versions"])


def test_the_record_describes_stream_and_tasks(finished: Path) -> None:
    found = record(finished)
    assert found["stream"]["name"] == "digits"
    assert re.fullmatch(r"[0-9a-f]{64}", found["stream"]["content_hash"])
    assert sorted(found["class_order"]) == list(range(10))
    assert found["class_names"] == [str(digit) for digit in found["class_order"]]
    assert [task["classes"] for task in found["tasks"]] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert sum(task["train"] + task["test"] for task in found["tasks"]) == 1797


def test_the_record_describes_the_backbone(finished: Path) -> None:
    backbone = record(finished)["backbone"]
    assert (backbone["name"], backbone["source"]) == ("vit_tiny_patch16_224", "embedded")
    assert re.fullmatch(r"[0-9a-f]{64}", backbone["sha256"])
    assert len(backbone["mean"]) == len(backbone["std"]) == 3


def test_the_record_counts_parameters(finished: Path) -> None:
    """Six blocks of 25 experts, a key row and a value row of 32 numbers in each of 4 heads; 10
    classes of 128 + 1.
    """
    assert record(finished)["trainable_parameters"] == {
        "prompt": 6 * 4 * 25 * 2 * 32,
        "classifier": 10 * 129,
    }


def test_the_record_says_what_it_cost(finished: Path) -> None:
    found = record(finished)
    cost, seconds = found["cost"], found["seconds"]
    assert cost["trainable_parameters"] == found["trainable_parameters"]
    assert cost["seconds"] == {key: seconds[key] for key in ("train", "align", "eval")}
    assert cost["waiting_share"] == found["waiting_share"]
    tested = sum(sum(task["test"] for task in found["tasks"][: index + 1]) for index in range(2))
    assert cost["images_per_second"] == {
        "train": found["images_per_second"],
        "infer": pytest.approx(tested / seconds["eval"]),
    }
    flops = cost["gflops_per_image"]
    assert 0 < flops["infer_gflops"]["torch"] < flops["train_gflops"]["torch"]
    stored = sum(v.nbytes for k, v in final_state(finished).items() if k.startswith("method."))
    assert cost["stored_state_bytes"] == stored
    assert cost["peak_memory_bytes"].keys() <= {"process_resident"}
    assert all(size > 10**8 for size in cost["peak_memory_bytes"].values()), (
        "torch alone takes more"
    )


def test_the_run_ends_with_its_cost(finished: Path) -> None:
    lines = (finished / "train.log").read_text(encoding="utf-8").splitlines()
    cost = record(finished)["cost"]
    head = lines.index(f"{'cost of an image':<42}{'training':>12}{'inference':>12}")
    flops = cost["gflops_per_image"]
    for line, counts, counter in (
        (1, flops, "torch"),
        (2, flops["without_cls_saving"], "torch"),
        (3, flops, "paper_convention"),
        (4, flops["without_cls_saving"], "paper_convention"),
    ):
        shown = [f"{counts[phase][counter]:.2g}" for phase in ("train_gflops", "infer_gflops")]
        assert lines[head + line].split()[-2:] == shown
    assert lines[head + 5].startswith("images a second")
    assert re.fullmatch(
        r"trained parameters: 38,400 in prompts, 1,290 in the classifier; stored state \d\.\d MB",
        lines[head + 6],
    )
    assert re.fullmatch(
        r"seconds: .+ training \(\d+\.\d\d % of it waiting for images\), .+ evaluation",
        lines[head + 7],
    )


def test_the_record_s_scores_follow_from_its_matrix(finished: Path) -> None:
    found = record(finished)
    matrix, sizes = found["accuracy_matrix"], [task["test"] for task in found["tasks"]]
    assert matrix[0][1] is None
    assert all(0 <= value <= 1 for row in matrix for value in row if value is not None)
    assert found["final_average_accuracy"] == final_average_accuracy(matrix)
    assert found["cumulative_average_accuracy"] == cumulative_average_accuracy(matrix)
    assert found["forgetting"] == forgetting(matrix)
    right = sum(round(value * size) for value, size in zip(matrix[1], sizes, strict=True))
    assert found["sample_weighted_accuracy"] == pytest.approx(right / sum(sizes))
    assert found["final_average_accuracy"] > 0.5, "ten classes: chance is 0.1"


def test_the_record_s_times(finished: Path) -> None:
    found = record(finished)
    seconds = found["seconds"]
    assert set(seconds) == {"train", "eval", "align", "wait", "per_task"}
    assert 0 < found["waiting_share"] == seconds["wait"] / seconds["train"] < 1
    assert len(seconds["per_task"]) == 2
    assert seconds["train"] + seconds["eval"] + seconds["align"] == pytest.approx(
        sum(seconds["per_task"])
    )
    images = 32 * int(losses(finished)[-1]["step"])
    assert found["images_per_second"] == pytest.approx(images / seconds["train"])


def test_the_configuration_is_kept(finished: Path) -> None:
    saved = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    assert saved == record(finished)["config"]
    assert saved["backbone"]["image_size"] == 16
    assert saved["router"]["top_k"] == 5


def test_the_metrics(finished: Path) -> None:
    rows = losses(finished)
    assert [(row["task"], row["phase"], row["epoch"]) for row in rows] == [
        ("0", "dense", "0"),
        ("0", "sparse", "0"),
        ("1", "sparse", "0"),
    ]
    assert all(math.isfinite(float(row["loss"])) for row in rows)


def test_a_loss_with_a_new_name_widens_the_metrics(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "seed: 0\n")
    directory.metrics.write_text("task,step,loss\n0,3,0.5\n0,6,0.4\n1,9,0.3\n0,")
    directory.drop_metrics_after(6)
    directory.append_metrics({"task": 1, "step": 9, "loss": 0.2, "pull": 0.1})
    directory.append_metrics({"task": 1, "step": 12, "loss": 0.1})
    table = ["task,step,loss,pull", "0,3,0.5,", "0,6,0.4,", "1,9,0.2,0.1", "1,12,0.1,"]
    assert directory.metrics.read_text().split() == table
    directory.drop_metrics_after(9)
    assert directory.metrics.read_text().split() == table[:-1]


def test_the_first_row_of_metrics_decides_the_columns(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "seed: 0\n")
    directory.append_metrics({"step": 3, "loss": 0.5, "of my own": 1.5})
    assert losses(tmp_path / "run") == [{"step": "3", "loss": "0.5", "of my own": "1.5"}]


def test_every_loss_of_a_method_has_a_column(tmp_path: Path) -> None:
    assert main(["train", *TINY, "method=l2p", f"run_dir={tmp_path / 'run'}"]) == 0
    assert all(float(row["pull"]) > 0 for row in losses(tmp_path / "run"))


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


def test_eval_gives_the_recorded_numbers(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(quick)
    assert main(["eval", str(quick)]) == 0
    assert "equal to what the run recorded" in capsys.readouterr().out
    assert main(["eval", str(quick), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["accuracy"] == found["recorded"] == record(quick)["accuracy_matrix"][-1]
    assert contents(quick) == before


def test_eval_tells_when_the_numbers_differ(
    quick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    classify = SMoPE.classify
    monkeypatch.setattr(SMoPE, "classify", lambda self, features: -classify(self, features))
    assert main(["eval", str(quick)]) == 1
    assert re.search(
        r"the run recorded [\d. ]+, which does not agree$", capsys.readouterr().out.strip()
    )


def test_eval_on_another_set_up_allows_what_the_audit_does(
    quick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy, process = Trainer.accuracy, reevaluate.process
    images = record(quick)["tasks"][0]["test"]

    def moved(self: Trainer, index: int, seen: int) -> float:
        return accuracy(self, index, seen) - (1 / images if index == 0 else 0)

    monkeypatch.setattr(Trainer, "accuracy", moved)
    assert main(["eval", str(quick)]) == 1, "an image moved on the set-up of the run"
    monkeypatch.setattr(reevaluate, "process", lambda device: {**process(device), "torch": "1.0"})
    assert main(["eval", str(quick)]) == 0
    assert "which agrees within 0.5 % or one image, on another set-up" in capsys.readouterr().out
    assert main(["eval", str(quick), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["equal"], found["agrees"]) == (False, True)


def test_eval_wants_a_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(folder / "nowhere")]) == 2
    assert "nowhere: no such directory" in capsys.readouterr().err
    assert main(["eval", str(tmp_path)]) == 2
    assert "holds no config.yaml" in capsys.readouterr().err


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
    assert steps == [["1", "723", "177", "22"], ["2", "719", "178", "11"]]
    assert contents(folder) == before
    assert not (folder / "dry").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.batch_size=800"],
            r"trainer\.batch_size=800 is larger than the 723 training images of task 1",
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
