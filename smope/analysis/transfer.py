"""Scores that need more than one run's matrix: intransigence, and forward transfer where it is
defined.
"""

from __future__ import annotations

from collections.abc import Sequence

from smope.analysis.runs import Run
from smope.errors import UserError
from smope.metrics import accuracy_matrix as metrics


def intransigence(run: Run, joint: Run) -> float:
    """metrics.intransigence against the diagonal of a run with method=joint: after task k it has
    trained on tasks 1..k.

    UserError where that run has other images, tasks or another class order (of another seed, say),
    or fewer tasks.
    """
    if run.stream != joint.stream:
        raise UserError(
            f"{joint.path}: was trained on other images, tasks or another class order than "
            f"{run.path}; take a joint "
            "run of the same stream and seed"
        )
    if joint.tasks_done < run.tasks_done:
        raise UserError(
            f"{joint.path}: has finished {joint.tasks_done} tasks, {run.path} {run.tasks_done}; "
            f"finish the joint run"
        )
    return metrics.intransigence(
        run.matrix, [joint.matrix[task][task] for task in range(run.tasks_done)]
    )


def forward_transfer(run: Run, untrained: Sequence[float] | None = None) -> float:
    """metrics.forward_transfer of a run with trainer.record=all on a stream where all classes come
    in every task.

    Over the tasks that are done. untrained: accuracy of an untrained model on each task of the
    stream; left out, chance, one over the number of classes. (Avalanche measures its own untrained
    model.) UserError where a task brings new classes: nothing can be known of them before.
    """
    classes = run.classes_of_tasks
    if any(set(mates) != set(classes[0]) for mates in classes):
        raise UserError(
            f"{run.path}: its tasks have classes of their own, so nothing can be transferred to "
            f"them before they are "
            "learned; forward transfer is for streams where all classes come in every task"
        )
    start = [1 / len(classes[0])] * run.num_tasks if untrained is None else list(untrained)
    if len(start) != run.num_tasks:
        raise UserError(
            f"untrained: must hold an accuracy for each of the {run.num_tasks} tasks, got "
            f"{len(start)}"
        )
    ahead: list[list[float]] = []
    for after in range(1, run.tasks_done + 1):
        snapshot = run.evidence.after(after)
        if snapshot.seen.all() and after < run.num_tasks:
            raise UserError(
                f"{run.path}: tasks to come were not evaluated; train it again with "
                f"trainer.record=all"
            )
        ahead.append(
            [
                float(snapshot.correct[snapshot.tasks == task].mean())
                for task in range(run.num_tasks)
            ]
        )
    return metrics.forward_transfer(ahead, start[: run.tasks_done])
