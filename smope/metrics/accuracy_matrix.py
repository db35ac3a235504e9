"""Scores that follow from the accuracy matrix A, where A[t][j] is the accuracy on task j's test
images after task t.

A is a list of rows of fractions, None where nothing was measured (j > t). Means over tasks are
unweighted: a task counts once, whatever its number of images. Definitions as in Le et al. 2026
(arXiv 2509.24483) and its program.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Matrix = Sequence[Sequence[float | None]]


def _seen(matrix: Matrix, row: int) -> list[float]:
    values = [value for value in matrix[row][: row + 1] if value is not None]
    if len(values) != row + 1:
        raise ValueError(
            f"accuracy_matrix: row {row} must hold {row + 1} measured accuracies, got {len(values)}"
        )
    return values


def average_accuracy(matrix: Matrix, row: int) -> float:
    """A_t: mean accuracy over the tasks seen after task `row`."""
    return fmean(_seen(matrix, row))


def final_average_accuracy(matrix: Matrix) -> float:
    """FAA: mean accuracy over all tasks after the last (Le et al. 2026).

    Avalanche's stream accuracy is another: that of all images together, see
    sample_weighted_accuracy.
    """
    return average_accuracy(matrix, len(matrix) - 1)


def cumulative_average_accuracy(matrix: Matrix) -> float:
    """CAA: mean of A_t over all t (Le et al. 2026).

    Avalanche's stream accuracies would weigh each A_t by images.
    """
    return fmean(average_accuracy(matrix, row) for row in range(len(matrix)))


def forgetting(matrix: Matrix) -> float:
    """Mean over all tasks but the last of (best accuracy before the last task - accuracy after it);
    0 for one task.

    Chaudhry et al. 2018 (arXiv 1801.10112). Avalanche's metric of this name takes the first
    accuracy, not the best.
    """
    per_task = forgetting_per_task(matrix)
    return fmean(per_task) if per_task else 0.0


def forgetting_per_task(matrix: Matrix) -> list[float]:
    """What `forgetting` is the mean of: one value for each task but the last."""
    last = len(matrix) - 1
    rows = [_seen(matrix, row) for row in range(len(matrix))]
    return [
        max(rows[row][task] for row in range(task, last)) - rows[last][task] for task in range(last)
    ]


def backward_transfer(matrix: Matrix) -> float:
    """Mean over all tasks but the last of (accuracy after the last task - the one right after its
    own); 0 for one task.

    Lopez-Paz and Ranzato 2017 (arXiv 1706.08840). Negative where tasks are forgotten.
    """
    last = len(matrix) - 1
    final = _seen(matrix, last)
    if last == 0:
        return 0.0
    return fmean(final[task] - _seen(matrix, task)[task] for task in range(last))


def learning_accuracy(matrix: Matrix) -> float:
    """Mean over all tasks of the accuracy right after learning them.

    Riemer et al. 2019 (arXiv 1810.11910). FAA = learning accuracy + backward transfer · (T - 1) /
    T.
    """
    return fmean(_seen(matrix, task)[task] for task in range(len(matrix)))


def intransigence(matrix: Matrix, joint: Sequence[float]) -> float:
    """Mean over all tasks of (joint accuracy on the task - accuracy right after learning it): what
    was not learned.

    Chaudhry et al. 2018 (arXiv 1801.10112). joint[k]: accuracy on task k of a model trained on
    tasks 1..k together, which is the diagonal of a run with method=joint.
    """
    if len(joint) != len(matrix):
        raise ValueError(
            f"joint must hold an accuracy for each of the {len(matrix)} tasks, got {len(joint)}"
        )
    return fmean(reference - _seen(matrix, task)[task] for task, reference in enumerate(joint))


def forward_transfer(matrix: Matrix, untrained: Sequence[float]) -> float:
    """Mean over all tasks but the first of (accuracy right before learning it - that of an
    untrained model).

    Lopez-Paz and Ranzato 2017 (arXiv 1706.08840). Needs A[t-1][t], which a class-incremental stream
    does not have (the task's classes are unknown before it): meant for streams where classes come
    again. 0 for one task.
    """
    before = [row[task + 1] for task, row in enumerate(matrix[:-1]) if len(row) > task + 1]
    if len(untrained) != len(matrix) or len(before) != len(matrix) - 1 or None in before:
        raise ValueError(
            f"accuracy_matrix: forward transfer needs the accuracy on each of the {len(matrix)} "
            f"tasks right before "
            "learning it, and untrained as many accuracies"
        )
    pairs = zip(before, untrained[1:], strict=True)
    return fmean(value - start for value, start in pairs if value is not None) if before else 0.0


def sample_weighted_accuracy(accuracies: Sequence[float], test_images: Sequence[int]) -> float:
    """Accuracy over all test images together, as Avalanche's stream accuracy; not the task mean
    where sizes differ.
    """
    if len(accuracies) != len(test_images) or not test_images:
        raise ValueError(
            f"accuracies ({len(accuracies)}) and test_images ({len(test_images)}) must be as "
            f"many, at least one"
        )
    return sum(a * n for a, n in zip(accuracies, test_images, strict=True)) / sum(test_images)
