"""Scores that need more than one run's matrix: intransigence, and forward transfer where it is defined."""

from __future__ import annotations

from collections.abc import Sequence

from smope.analysis.runs import Run
from smope.errors import UserError
from smope.metrics import accuracy_matrix as metrics


def intransigence(run: Run, joint: Run) -> float:
    """metrics.intransigence with the last row of a run of the same stream that was trained on all tasks together."""
    if run.record["stream"]["content_hash"] != joint.record["stream"]["content_hash"]:
        raise UserError(f"{joint.path}: was trained on another stream than {run.path}; take a joint run on the same")
    if len(joint.matrix[-1]) != run.tasks_done:
        raise UserError(
            f"{joint.path}: has accuracies on {len(joint.matrix[-1])} tasks, {run.path} on {run.tasks_done}; take a "
            "joint run that is evaluated on the same tasks"
        )
    return metrics.intransigence(run.matrix, joint.matrix[-1])


def forward_transfer(run: Run, untrained: Sequence[float] | None = None) -> float:
    """metrics.forward_transfer of a run with trainer.record=all on a stream where all classes come in every task.

    untrained: accuracy of an untrained model on each task; left out, chance, one over the number of classes. (Avalanche
    measures its own untrained model.) UserError where a task brings new classes: nothing can be known of them before.
    """
    classes = run.classes_of_tasks
    if any(set(mates) != set(classes[0]) for mates in classes):
        raise UserError(
            f"{run.path}: its tasks have classes of their own, so nothing can be transferred to them before they are "
            "learned; forward transfer is for streams where all classes come in every task"
        )
    ahead: list[list[float]] = []
    for after in range(1, run.tasks_done + 1):
        snapshot = run.evidence.after(after)
        if snapshot.seen.all() and after < run.num_tasks:
            raise UserError(f"{run.path}: tasks to come were not evaluated; train it again with trainer.record=all")
        ahead.append([float(snapshot.correct[snapshot.tasks == task].mean()) for task in range(run.num_tasks)])
    return metrics.forward_transfer(ahead, untrained or [1 / len(classes[0])] * run.num_tasks)
