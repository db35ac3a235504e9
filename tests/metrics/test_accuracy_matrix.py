"""The scores of an accuracy matrix: by hand, against naive loops, and on matrices that are not
whole.
"""

from __future__ import annotations

import copy
import random

import pytest

from smope.metrics.accuracy_matrix import (
    average_accuracy,
    backward_transfer,
    cumulative_average_accuracy,
    final_average_accuracy,
    forgetting,
    forgetting_per_task,
    forward_transfer,
    intransigence,
    learning_accuracy,
    sample_weighted_accuracy,
)

# Task 1 is best in the middle (0.9), task 2 right after its own training (0.8).
MATRIX = [
    [0.7, None, None],
    [0.9, 0.8, None],
    [0.6, 0.5, 1.0],
]


def test_by_hand() -> None:
    assert [average_accuracy(MATRIX, row) for row in range(3)] == pytest.approx([0.7, 0.85, 0.7])
    assert final_average_accuracy(MATRIX) == pytest.approx(0.7)
    assert cumulative_average_accuracy(MATRIX) == pytest.approx((0.7 + 0.85 + 0.7) / 3)
    assert forgetting(MATRIX) == pytest.approx((0.3 + 0.3) / 2)
    assert forgetting_per_task(MATRIX) == pytest.approx([0.3, 0.3])
    assert backward_transfer(MATRIX) == pytest.approx((-0.1 - 0.3) / 2)
    assert learning_accuracy(MATRIX) == pytest.approx((0.7 + 0.8 + 1.0) / 3)
    assert intransigence(MATRIX, [0.8, 0.8, 0.7]) == pytest.approx((0.1 + 0 - 0.3) / 3)


def test_final_accuracy_is_learning_plus_backward_transfer() -> None:
    gained = backward_transfer(MATRIX) * 2 / 3
    assert final_average_accuracy(MATRIX) == pytest.approx(learning_accuracy(MATRIX) + gained)


def test_forward_transfer_by_hand() -> None:
    ahead = [[0.7, 0.3, 0.9], [0.9, 0.8, 0.6], [0.6, 0.5, 1.0]]
    assert forward_transfer(ahead, [0.9, 0.1, 0.5]) == pytest.approx((0.2 + 0.1) / 2)
    assert forward_transfer([[0.7]], [0.1]) == 0


@pytest.mark.parametrize(
    ("matrix", "untrained"), [(MATRIX, [0.1] * 3), ([[0.7], [0.9, 0.8]], [0.1] * 2), ([[1]], [])]
)
def test_forward_transfer_needs_what_comes_before(
    matrix: list[list[float | None]], untrained: list[float]
) -> None:
    with pytest.raises(ValueError, match="forward transfer needs the accuracy"):
        forward_transfer(matrix, untrained)


def test_a_joint_run_must_have_as_many_tasks() -> None:
    with pytest.raises(
        ValueError, match="joint must hold an accuracy for each of the 3 tasks, got 1"
    ):
        intransigence(MATRIX, [0.5])


def test_a_task_that_improves_is_forgotten_less_than_nothing() -> None:
    assert forgetting([[0.5, None], [0.7, 0.1]]) == pytest.approx(-0.2)
    assert backward_transfer([[0.5, None], [0.7, 0.1]]) == pytest.approx(0.2)


def test_one_task() -> None:
    assert final_average_accuracy([[0.4]]) == cumulative_average_accuracy([[0.4]]) == 0.4
    assert forgetting([[0.4]]) == backward_transfer([[0.4]]) == 0


def test_rows_may_be_short() -> None:
    """Rows without the tasks still to come are the same as rows that hold None for them."""
    short = [[0.7], [0.9, 0.8], [0.6, 0.5, 1.0]]
    for score in (
        final_average_accuracy,
        cumulative_average_accuracy,
        forgetting,
        backward_transfer,
    ):
        assert score(short) == score(MATRIX)


def test_what_is_measured_beyond_the_seen_tasks_does_not_count() -> None:
    zero_shot = [[0.7, 0.3, 0.9], [0.9, 0.8, 0.9], [0.6, 0.5, 1.0]]
    for score in (
        final_average_accuracy,
        cumulative_average_accuracy,
        forgetting,
        backward_transfer,
    ):
        assert score(zero_shot) == score(MATRIX)


@pytest.mark.parametrize(
    "score", [final_average_accuracy, cumulative_average_accuracy, forgetting, backward_transfer]
)
def test_a_hole_is_refused(score: object) -> None:
    with pytest.raises(
        ValueError, match=r"accuracy_matrix: row 2 must hold 3 measured accuracies, got 2"
    ):
        score([[0.7], [0.9, 0.8], [0.6, None, 1.0]])


def test_weighted_by_images() -> None:
    assert sample_weighted_accuracy([0.5, 1.0], [30, 10]) == pytest.approx(0.625)
    assert sample_weighted_accuracy([0.5, 1.0], [7, 7]) == pytest.approx(0.75)


@pytest.mark.parametrize(("accuracies", "images"), [([0.5], [1, 2]), ([], [])])
def test_weights_must_fit(accuracies: list[float], images: list[int]) -> None:
    with pytest.raises(ValueError, match="must be as many, at least one"):
        sample_weighted_accuracy(accuracies, images)


def test_nothing_is_changed() -> None:
    matrix, accuracies, images = copy.deepcopy(MATRIX), [0.5, 1.0], [30, 10]
    for score in (
        final_average_accuracy,
        cumulative_average_accuracy,
        forgetting,
        backward_transfer,
    ):
        score(matrix)
    sample_weighted_accuracy(accuracies, images)
    assert (matrix, accuracies, images) == (MATRIX, [0.5, 1.0], [30, 10])


@pytest.mark.parametrize("tasks", [2, 3, 7])
def test_against_naive_loops(tasks: int) -> None:
    """From the hits of single images up: every score counted out."""
    draw = random.Random(tasks)
    sizes = [draw.randint(1, 30) for _ in range(tasks)]
    hits = [[draw.randint(0, sizes[j]) for j in range(t + 1)] for t in range(tasks)]
    matrix = [[hits[t][j] / sizes[j] for j in range(t + 1)] for t in range(tasks)]
    last = matrix[-1]

    means = []
    for row in matrix:
        total = 0.0
        for value in row:
            total += value
        means.append(total / len(row))
    lost = gained = 0.0
    for j in range(tasks - 1):
        best = 0.0
        for t in range(j, tasks - 1):
            best = max(best, matrix[t][j])
        lost += (best - last[j]) / (tasks - 1)
        gained += (last[j] - matrix[j][j]) / (tasks - 1)

    assert final_average_accuracy(matrix) == pytest.approx(means[-1])
    assert cumulative_average_accuracy(matrix) == pytest.approx(sum(means) / tasks)
    assert forgetting(matrix) == pytest.approx(lost)
    assert backward_transfer(matrix) == pytest.approx(gained)
    assert sample_weighted_accuracy(last, sizes) == pytest.approx(sum(hits[-1]) / sum(sizes))
