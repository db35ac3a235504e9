"""Errors within and between tasks, confusion and forgetting of classes, on a run of eight images."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest

from smope.analysis import (
    class_accuracies,
    class_confusion,
    class_forgetting,
    forward_transfer,
    intransigence,
    load_runs,
    split_errors,
    task_confusion,
)
from smope.analysis.runs import Run
from smope.errors import UserError
from tests.analysis.made_runs import logits_for, usual_evidence, usual_run, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return usual_run(tmp_path / "run")


def test_errors_within_and_between_tasks(run: Run) -> None:
    first, second = split_errors(run).to_dict("records")
    assert first == {"after_task": 1, "images": 4, "accuracy": 1.0, "within_task": 0.0, "between_tasks": 0.0,
                     "into_newest": 0.0, "told_task": 1.0}  # fmt: skip
    assert second["accuracy"] == 6 / 8
    assert second["within_task"] == second["between_tasks"] == second["into_newest"] == 1 / 8
    # told the task, the image of class 1 is left with equal logits for 0 and 1: the first is taken, which is wrong
    assert second["told_task"] == 6 / 8


def test_confusion_between_tasks(run: Run) -> None:
    table = task_confusion(run)
    assert table.to_numpy().tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert table.index.tolist() == [1, 2]
    assert task_confusion(run, after=1).to_numpy().tolist() == [[1.0]]


def test_confusion_between_classes(run: Run) -> None:
    table = class_confusion(run)
    assert table.index.tolist() == ["a", "b", "c", "d"]
    assert table.to_numpy().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 2]]


def test_forgetting_of_classes(run: Run) -> None:
    frame = class_accuracies(run)
    assert frame[frame["after_task"] == 2]["accuracy"].tolist() == [0.5, 0.5, 1.0, 1.0]
    table = class_forgetting(run)
    assert table["name"].tolist() == ["a", "b"]
    assert table["forgetting"].tolist() == [0.5, 0.5]
    assert table["learned"].tolist() == table["best"].tolist() == [1.0, 1.0]


def domain_run(path: Path, record: str = "all") -> Run:
    """Two tasks with the same two classes; before the second, half of its images are classified right."""
    evidence = usual_evidence()
    before = [0, 0, 1, 1, 0, 1, 1, 0] if record == "all" else [0, 0, 1, 1]
    after = [0, 0, 1, 1, 0, 0, 1, 1]
    for done, predicted in ((1, before), (2, after)):
        evidence[done] = {"logits": logits_for(predicted, 2), "predicted": numpy.array(predicted, numpy.uint16)}
    tasks = [{"name": name, "classes": [0, 1], "train": 4, "test": 4} for name in ("photo", "sketch")]
    (run,) = load_runs(write_run(path, evidence=evidence, tasks=tasks, class_names=["a", "b"]))
    labels = run.evidence._images["labels"]
    labels[4:] = [0, 0, 1, 1]
    return run


def test_where_classes_come_again_no_prediction_names_a_task(tmp_path: Path) -> None:
    run = domain_run(tmp_path / "run")
    assert not run.class_incremental
    with pytest.raises(UserError, match="classes come in several tasks"):
        task_confusion(run)
    assert split_errors(run)["between_tasks"].tolist() == [0.0, 0.0]


def test_forward_transfer(tmp_path: Path, run: Run) -> None:
    assert forward_transfer(domain_run(tmp_path / "all")) == pytest.approx(0.5 - 1 / 2)
    assert forward_transfer(domain_run(tmp_path / "given"), [0.5, 0.2]) == pytest.approx(0.3)
    with pytest.raises(UserError, match=r"trainer\.record=all"):
        forward_transfer(domain_run(tmp_path / "seen", record="seen"))
    with pytest.raises(UserError, match="its tasks have classes of their own"):
        forward_transfer(run)


def test_intransigence(tmp_path: Path, run: Run) -> None:
    (joint,) = load_runs(write_run(tmp_path / "joint", accuracy_matrix=[[1.0, None], [0.9, 0.8]]))
    assert intransigence(run, joint) == pytest.approx((-0.1 - 0.2) / 2)
    stream = {"name": "made", "content_hash": "other", "identity": "i"}
    (other,) = load_runs(write_run(tmp_path / "other", stream=stream))
    with pytest.raises(UserError, match="trained on another stream"):
        intransigence(run, other)
    (short,) = load_runs(write_run(tmp_path / "short", accuracy_matrix=[[1.0, None], [None, None]]))
    with pytest.raises(UserError, match="has accuracies on 1 tasks"):
        intransigence(run, short)
