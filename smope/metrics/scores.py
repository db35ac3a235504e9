"""The scores of a run: the one list that the terminal, run.json, tables and reports read.

To add a score, add an entry to SCORES. It then appears in run.json, in `smope.analysis.scores`, in
the columns of `smope collect`, and in the report with its definition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smope.metrics import accuracy_matrix as metrics
from smope.metrics.accuracy_matrix import Matrix


@dataclass(frozen=True)
class Score:
    """One number that sums up an accuracy matrix; a fraction, shown in percent.

    title:      the full name, as the terminal prints it.
    short:      the heading of a column.
    definition: one sentence with its source, as the report prints it.
    function:   computes it from the matrix (rows of finished tasks only) and the number of test
                images of each of these tasks.
    better:     whether a high or a low value is better.
    """

    title: str
    short: str
    definition: str
    function: Callable[[Matrix, Sequence[int]], float]
    better: Literal["high", "low"] = "high"


def _from_matrix(function: Callable[[Matrix], float]) -> Callable[[Matrix, Sequence[int]], float]:
    """A score that weighs tasks equally, so that the numbers of images do not matter."""
    return lambda matrix, _: function(matrix)


SCORES: dict[str, Score] = {
    "final_average_accuracy": Score(
        "final average accuracy (FAA)",
        "FAA",
        "final average accuracy: the mean over all tasks after the last (Le et al. 2026)",
        _from_matrix(metrics.final_average_accuracy),
    ),
    "cumulative_average_accuracy": Score(
        "cumulative average accuracy (CAA)",
        "CAA",
        "cumulative average accuracy: the mean over t of the mean over the tasks seen after t "
        "(Le et al. 2026)",
        _from_matrix(metrics.cumulative_average_accuracy),
    ),
    "average_incremental_accuracy": Score(
        "average incremental accuracy (AIA)",
        "AIA",
        "average incremental accuracy: the mean over t of the accuracy over all test images of the "
        "tasks seen after t, images weighted equally (Rebuffi et al. 2017; PyCIL and PILOT print "
        "it)",
        metrics.average_incremental_accuracy,
    ),
    "forgetting": Score(
        "forgetting",
        "forgetting",
        "mean over old tasks of the best earlier accuracy minus the last (Chaudhry et al. 2018)",
        _from_matrix(metrics.forgetting),
        better="low",
    ),
    "backward_transfer": Score(
        "backward transfer",
        "backward transfer",
        "mean over old tasks of the last accuracy minus the one right after learning the task "
        "(Lopez-Paz and Ranzato 2017)",
        _from_matrix(metrics.backward_transfer),
    ),
    "learning_accuracy": Score(
        "learning accuracy",
        "learning accuracy",
        "mean accuracy on each task right after learning it (Riemer et al. 2019)",
        _from_matrix(metrics.learning_accuracy),
    ),
    "sample_weighted_accuracy": Score(
        "accuracy over all images",
        "all images",
        "accuracy over all test images together, after the last task",
        lambda matrix, images: metrics.sample_weighted_accuracy(
            [value for value in matrix[-1] if value is not None], images
        ),
    ),
}


def all_scores(matrix: Matrix, images: Sequence[int]) -> dict[str, float | None]:
    """Every score of SCORES; all None before the first task is finished.

    Args:
        matrix: One row for each finished task, fractions.
        images: Number of test images of each task; those of later tasks are ignored.

    Returns:
        Score by name, as the keys of run.json.
    """
    if not matrix:
        return dict.fromkeys(SCORES)
    seen = images[: len(matrix)]
    return {name: score.function(matrix, seen) for name, score in SCORES.items()}


def finished_rows(record: Mapping[str, Any]) -> list[list[float]]:
    """The accuracy matrix of a run.json without the tasks that are not finished."""
    rows = [
        [value for value in row if value is not None] for row in record.get("accuracy_matrix") or []
    ]
    return [row for row in rows if row]


def recorded_scores(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Every score, computed from the accuracy matrix of a run.json.

    A run.json of an older version, which lacks a score, has it here as well. If the matrix or the
    numbers of test images are missing, the scores are those that were recorded.
    """
    matrix = finished_rows(record)
    tasks = record.get("tasks") or []
    if not matrix or len(tasks) < len(matrix):
        return {name: record.get(name) for name in SCORES}
    return all_scores(matrix, [task["test"] for task in tasks])
