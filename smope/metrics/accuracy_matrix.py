"""The mathematics of scores: functions of the accuracy matrix A; scores.py has the list of scores.

A[t, j] is the accuracy on the test images of task j after task t, a fraction. Rows may be short or
have None for what was not measured (j > t). Means over tasks are unweighted: each task counts once,
whatever its number of images, except in the functions that take `test_images`. Definitions as in
Le et al. 2026 (arXiv 2509.24483) and its code.
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
    """A_t, the mean accuracy over the tasks seen after task t.

    Args:
        matrix: The accuracy matrix.
        row: t, from 0.
    """
    return fmean(_seen(matrix, row))


def final_average_accuracy(matrix: Matrix) -> float:
    """FAA: mean accuracy over all tasks after the last (Le et al. 2026).

    Avalanche's stream accuracy weighs tasks by images, see `sample_weighted_accuracy`.
    """
    return average_accuracy(matrix, len(matrix) - 1)


def cumulative_average_accuracy(matrix: Matrix) -> float:
    """CAA: mean of A_t over all t (Le et al. 2026), tasks weighted equally in each A_t.

    Many papers print `average_incremental_accuracy` instead; the two are equal if all tasks have
    the same number of test images.
    """
    return fmean(average_accuracy(matrix, row) for row in range(len(matrix)))


def average_incremental_accuracy(matrix: Matrix, test_images: Sequence[int]) -> float:
    """AIA: mean over all t of the accuracy over all test images of the tasks seen after task t.

    Called average incremental accuracy in iCaRL (Rebuffi et al. 2017, arXiv 1611.07725). PyCIL and
    PILOT print it as the average accuracy, the first stage included. A first task of half of the
    classes (B50) counts for half of the images of the last stage here, and for one task in CAA.

    Args:
        matrix: The accuracy matrix.
        test_images: The number of test images of each task.
    """
    return fmean(
        sample_weighted_accuracy(_seen(matrix, row), test_images[: row + 1])
        for row in range(len(matrix))
    )


def forgetting(matrix: Matrix) -> float:
    """Mean over all tasks but the last of (best accuracy before the last task - accuracy after it).

    0 for one task. Chaudhry et al. 2018 (arXiv 1801.10112). Avalanche's metric of this name takes
    the first accuracy instead of the best.
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
    """Mean over all tasks but the last of (accuracy after the last task - right after its own).

    0 for one task, negative if tasks are forgotten. Lopez-Paz and Ranzato 2017 (arXiv 1706.08840).
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
    """Mean over all tasks of (joint accuracy on the task - accuracy right after learning it).

    This is what was not learned. Chaudhry et al. 2018 (arXiv 1801.10112).

    Args:
        matrix: The accuracy matrix.
        joint: For each task k the accuracy on it of a model trained on tasks 1 to k together, which
            is the diagonal of a run with method=joint.
    """
    if len(joint) != len(matrix):
        raise ValueError(
            f"joint must hold an accuracy for each of the {len(matrix)} tasks, got {len(joint)}"
        )
    return fmean(reference - _seen(matrix, task)[task] for task, reference in enumerate(joint))


def forward_transfer(matrix: Matrix, untrained: Sequence[float]) -> float:
    """Mean over all tasks but the first of (accuracy right before learning it - untrained one).

    Lopez-Paz and Ranzato 2017 (arXiv 1706.08840). It needs A[t-1, t], which class-incremental
    streams do not have, because the classes of a task are unknown before it. 0 for one task.

    Args:
        matrix: The accuracy matrix with the accuracies on the next task.
        untrained: The accuracy of an untrained model on each task.
    """
    before = [row[task + 1] for task, row in enumerate(matrix[:-1]) if len(row) > task + 1]
    if len(untrained) != len(matrix) or len(before) != len(matrix) - 1 or None in before:
        raise ValueError(
            f"accuracy_matrix: forward transfer needs the accuracy on each of the {len(matrix)} "
            f"tasks right before learning it, and untrained as many accuracies"
        )
    pairs = zip(before, untrained[1:], strict=True)
    return fmean(value - start for value, start in pairs if value is not None) if before else 0.0


def sample_weighted_accuracy(accuracies: Sequence[float], test_images: Sequence[int]) -> float:
    """Accuracy over all test images together, which is Avalanche's stream accuracy.

    Args:
        accuracies: The accuracy on each task.
        test_images: The number of test images of each task.
    """
    if len(accuracies) != len(test_images) or not test_images:
        raise ValueError(
            f"accuracies ({len(accuracies)}) and test_images ({len(test_images)}) must be as "
            f"many, at least one"
        )
    return sum(a * n for a, n in zip(accuracies, test_images, strict=True)) / sum(test_images)
