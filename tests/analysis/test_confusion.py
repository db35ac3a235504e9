"""Errors within and between tasks, confusion, forgetting of classes: a run of eight images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from smope.analysis.run import Run
from smope.errors import UserError
from tests.analysis.made_runs import logits_for, usual_run, usual_snapshots, write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return usual_run(tmp_path / "run")


def test_errors_within_and_between_tasks(run: Run) -> None:
    first, second = split_errors(run).to_dict("records")
    assert first == {
        "after_task": 1,
        "images": 4,
        "accuracy": 1.0,
        "within_task": 0.0,
        "between_tasks": 0.0,
        "into_newest": 0.0,
        "known_task": 1.0,
    }
    assert second["accuracy"] == 6 / 8
    assert second["within_task"] == second["between_tasks"] == second["into_newest"] == 1 / 8
    # told the task, the image of class 1 is left with equal logits for 0 and 1: the first is taken,
    # which is wrong
    assert second["known_task"] == 6 / 8


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


@pytest.fixture
def three(tmp_path: Path) -> Run:
    """Three tasks of two classes, two images a class, on which no two of the numbers below come out
    alike.

    Class 0 is learned by half, best after task 2 and lost in the end to classes 2 and 4. Told their
    task, all images of class 0 and the one of class 3 that is taken for class 4 would be right; the
    one of class 1 would not.
    """
    labels = [label for label in range(6) for _ in range(2)]
    predicted = {
        1: [0, 1, 1, 1],
        2: [0, 0, 1, 1, 2, 3, 3, 3],
        3: [2, 4, 1, 4, 2, 3, 3, 4, 4, 4, 5, 5],
    }
    snapshots = {
        after: {"logits": logits_for(row, 2 * after), "predicted": numpy.array(row, numpy.uint16)}
        for after, row in predicted.items()
    }
    snapshots[3]["logits"][[0, 1, 3], 0] = snapshots[3]["logits"][7, 3] = 1
    tasks = [
        {"name": f"task {t}", "classes": [2 * t, 2 * t + 1], "train": 4, "test": 4}
        for t in range(3)
    ]
    matrix = [[0.75, None, None], [1.0, 0.75, None], [0.25, 0.5, 1.0]]
    changes = {"tasks": tasks, "class_names": list("abcdef"), "accuracy_matrix": matrix}
    (run,) = load_runs(write_run(tmp_path / "three", snapshots=snapshots, **changes))
    run.snapshots._images.update(labels=numpy.array(labels), tasks=numpy.array(labels) // 2)
    return run


def test_three_tasks_tell_the_parts_of_errors_apart(three: Run) -> None:
    after = split_errors(three).set_index("after_task").loc[3]
    # of 12 images five are wrong: one within its task (class 2 for 3), one into task 2, three into
    # the newest
    parts = ("accuracy", "within_task", "between_tasks", "into_newest", "known_task")
    assert [round(12 * after[part]) for part in parts] == [7, 1, 4, 3, 10]
    assert task_confusion(three).to_numpy().tolist() == [
        [0.25, 0.25, 0.5],
        [0, 0.75, 0.25],
        [0, 0, 1],
    ]


def test_three_tasks_tell_learned_best_and_final_apart(three: Run) -> None:
    table = class_forgetting(three).set_index("name")[["learned", "best", "final", "forgetting"]]
    assert table.index.tolist() == ["a", "b", "d", "c"]
    assert table.loc["a"].tolist() == [0.5, 1.0, 0.0, 1.0]
    assert table.loc["b"].tolist() == [1.0, 1.0, 0.5, 0.5]
    assert table.loc["c"].tolist() == [0.5, 0.5, 0.5, 0.0]


def domain_run(path: Path, record: str = "all", **changes: Any) -> Run:
    """Two tasks with the same two classes; before the second, half of its images are classified
    right.
    """
    snapshots = usual_snapshots()
    before = [0, 0, 1, 1, 0, 1, 1, 0] if record == "all" else [0, 0, 1, 1]
    after = [0, 0, 1, 1, 0, 0, 1, 1]
    for done, predicted in ((1, before), (2, after)):
        snapshots[done] = {
            "logits": logits_for(predicted, 2),
            "predicted": numpy.array(predicted, numpy.uint16),
        }
    tasks = [
        {"name": name, "classes": [0, 1], "train": 4, "test": 4} for name in ("photo", "sketch")
    ]
    (run,) = load_runs(
        write_run(path, snapshots=snapshots, tasks=tasks, class_names=["a", "b"], **changes)
    )
    labels = run.snapshots._images["labels"]
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
    assert forward_transfer(
        domain_run(tmp_path / "array"), numpy.array([0.5, 0.2])
    ) == pytest.approx(0.3)
    with pytest.raises(
        UserError, match="untrained: must hold an accuracy for each of the 2 tasks, got 1"
    ):
        forward_transfer(domain_run(tmp_path / "short"), [0.5])
    early = {"status": "running", "accuracy_matrix": [[1.0, None], [None, None]]}
    assert forward_transfer(domain_run(tmp_path / "early", **early)) == 0, (
        "one task: nothing came before it"
    )
    with pytest.raises(UserError, match=r"trainer\.record=all"):
        forward_transfer(domain_run(tmp_path / "seen", record="seen"))
    with pytest.raises(UserError, match="its tasks have classes of their own"):
        forward_transfer(run)


def test_intransigence(tmp_path: Path, run: Run) -> None:
    """The reference for a task is the joint run right after it, not the joint run's last row (0.6,
    0.8).
    """
    (joint,) = load_runs(write_run(tmp_path / "joint", accuracy_matrix=[[0.9, None], [0.6, 0.8]]))
    assert intransigence(run, joint) == pytest.approx((-0.1 - 0.2) / 2)
    stream = {"name": "made", "content_hash": "c", "identity": "another class order"}
    (other,) = load_runs(write_run(tmp_path / "other", stream=stream))
    with pytest.raises(
        UserError, match="was trained on other images, tasks or another class order"
    ):
        intransigence(run, other)
    early = {"status": "running", "accuracy_matrix": [[0.8, None], [None, None]]}
    (short,) = load_runs(write_run(tmp_path / "short", **early))
    with pytest.raises(UserError, match=r"has finished 1 tasks, .* 2; finish the joint run"):
        intransigence(run, short)
    assert intransigence(short, joint) == pytest.approx(0.9 - 0.8), (
        "of a run under way over its tasks"
    )
