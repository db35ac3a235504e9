"""Scores that follow from the accuracy matrix A, where A[t][j] is the accuracy on task j's test images after task t.

A is a list of rows of fractions, None where nothing was measured (j > t). Means over tasks are unweighted: a task
counts once, whatever its number of images. Definitions as in Le et al. 2026 (arXiv 2509.24483) and its program.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Matrix = Sequence[Sequence[float | None]]


def _seen(matrix: Matrix, row: int) -> list[float]:
    values = [value for value in matrix[row][: row + 1] if value is not None]
    if len(values) != row + 1:
        raise ValueError(f"accuracy_matrix: row {row} must hold {row + 1} measured accuracies, got {len(values)}")
    return values


def average_accuracy(matrix: Matrix, row: int) -> float:
    """A_t: mean accuracy over the tasks seen after task `row`."""
    return fmean(_seen(matrix, row))


def final_average_accuracy(matrix: Matrix) -> float:
    """FAA: mean accuracy over all tasks after the last."""
    return average_accuracy(matrix, len(matrix) - 1)


def cumulative_average_accuracy(matrix: Matrix) -> float:
    """CAA: mean of A_t over all t."""
    return fmean(average_accuracy(matrix, row) for row in range(len(matrix)))


def forgetting(matrix: Matrix) -> float:
    """Mean over all tasks but the last of (best accuracy before the last task - accuracy after it); 0 for one task.

    Chaudhry et al. 2018 (arXiv 1801.10112). Avalanche's metric of this name takes the first accuracy, not the best.
    """
    last = len(matrix) - 1
    final = _seen(matrix, last)
    if last == 0:
        return 0.0
    return fmean(max(_seen(matrix, row)[task] for row in range(task, last)) - final[task] for task in range(last))


def backward_transfer(matrix: Matrix) -> float:
    """Mean over all tasks but the last of (accuracy after the last task - the one right after its own); 0 for one task.

    Lopez-Paz and Ranzato 2017 (arXiv 1706.08840). Negative where tasks are forgotten.
    """
    last = len(matrix) - 1
    final = _seen(matrix, last)
    if last == 0:
        return 0.0
    return fmean(final[task] - _seen(matrix, task)[task] for task in range(last))


def sample_weighted_accuracy(accuracies: Sequence[float], test_images: Sequence[int]) -> float:
    """Accuracy over all test images together; differs from the task mean where tasks are of unequal size."""
    if len(accuracies) != len(test_images) or not test_images:
        raise ValueError(
            f"accuracies ({len(accuracies)}) and test_images ({len(test_images)}) must be as many, at least one"
        )
    return sum(a * n for a, n in zip(accuracies, test_images, strict=True)) / sum(test_images)
