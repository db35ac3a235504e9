"""Avalanche's own metrics, fed the same predictions, where the definitions agree; and where they
do not, how.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from avalanche.evaluation.metrics import (
    BWT,
    ClassAccuracy,
    ConfusionMatrix,
    Forgetting,
    ForwardTransfer,
)
from avalanche.evaluation.metrics.accuracy import Accuracy
from avalanche.evaluation.metrics.amca import AverageMeanClassAccuracy

from smope.analysis import class_accuracies, class_confusion
from smope.metrics.accuracy_matrix import (
    backward_transfer,
    forgetting,
    forward_transfer,
    sample_weighted_accuracy,
)
from tests.analysis.made_runs import usual_run

MATRIX = [[0.7, 0.2, 0.3], [0.9, 0.8, 0.4], [0.6, 0.5, 1.0]]


def fed(metric: Forgetting | BWT) -> float:
    """Avalanche's metric after the first accuracy of each task and the last."""
    for task in range(3):
        metric.update(task, MATRIX[task][task], initial=True)
        metric.update(task, MATRIX[2][task])
    values = metric.result()
    assert isinstance(values, dict)
    return sum(values[task] for task in range(2)) / 2


def test_backward_transfer_is_avalanche_s() -> None:
    assert backward_transfer(MATRIX) == pytest.approx(fed(BWT()))


def test_avalanche_s_forgetting_takes_the_first_accuracy_ours_the_best() -> None:
    assert fed(Forgetting()) == pytest.approx(-backward_transfer(MATRIX))
    assert forgetting(MATRIX) == pytest.approx(fed(Forgetting()) + (0.9 - 0.7) / 2)


def test_forward_transfer_is_avalanche_s() -> None:
    untrained = [0.1, 0.1, 0.25]
    metric = ForwardTransfer()
    for task in (1, 2):
        metric.update(task, untrained[task], initial=True)
        metric.update(task, MATRIX[task - 1][task])
    values = metric.result()
    assert isinstance(values, dict)
    assert forward_transfer(MATRIX, untrained) == pytest.approx(sum(values.values()) / 2)


def test_avalanche_s_stream_accuracy_is_weighted_by_images() -> None:
    metric, sizes = Accuracy(), [10, 30, 20]
    for value, size in zip(MATRIX[2], sizes, strict=True):
        right = round(value * size)
        metric.update(
            torch.tensor([0] * right + [1] * (size - right)), torch.zeros(size, dtype=torch.int64)
        )
    assert sample_weighted_accuracy(MATRIX[2], sizes) == pytest.approx(metric.result())


def test_confusion_and_class_accuracy_are_avalanche_s(tmp_path: Path) -> None:
    run = usual_run(tmp_path / "run")
    snapshot = run.snapshots.last
    labels, predicted = torch.tensor(snapshot.labels), torch.tensor(snapshot.predicted)
    matrix = ConfusionMatrix(num_classes=4)
    matrix.update(labels, predicted)
    assert numpy.array_equal(class_confusion(run).to_numpy(), matrix.result().numpy())
    accuracy = ClassAccuracy(classes={0: [0, 1, 2, 3]})
    accuracy.update(predicted, labels, 0)
    ours = class_accuracies(run)
    ours = ours[ours["after_task"] == 2].set_index("label")["accuracy"]
    assert ours.to_dict() == pytest.approx(accuracy.result()[0])


def test_the_mean_over_classes_and_time_is_avalanche_s_amca(tmp_path: Path) -> None:
    run, metric = usual_run(tmp_path / "run"), AverageMeanClassAccuracy()
    for after in (1, 2):
        snapshot = run.snapshots.after(after)
        labels, predicted = (
            torch.tensor(part[snapshot.seen]) for part in (snapshot.labels, snapshot.predicted)
        )
        metric.update(predicted, labels, 0)
        if after == 1:
            metric.next_experience()
    means = class_accuracies(run).groupby("after_task")["accuracy"].mean()
    assert means.tolist() == [1.0, 0.75]
    assert metric.result()[0] == pytest.approx(means.mean())
