"""What a run directory holds."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from smope.cli.main import main
from smope.metrics.accuracy_matrix import (
    cumulative_average_accuracy,
    final_average_accuracy,
    forgetting,
)
from smope.storage.run_directory import RunDirectory

from .small_runs import TINY, contents, final_state, losses, record, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """experiment=smoke as it is."""
    return train(tmp_path_factory.mktemp("runs") / "smoke", "experiment=smoke")


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


@pytest.mark.usefixtures("few_digits")
def test_every_loss_of_a_method_has_a_column(tmp_path: Path) -> None:
    assert main(["train", *TINY, "method=l2p", f"run_dir={tmp_path / 'run'}"]) == 0
    assert all(float(row["pull"]) > 0 for row in losses(tmp_path / "run"))
