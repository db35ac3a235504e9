"""Scores that need more than the run's own accuracy matrix: intransigence, forward transfer."""

from __future__ import annotations

from collections.abc import Sequence

from smope.analysis.run import Run
from smope.errors import UserError
from smope.metrics import accuracy_matrix as metrics


def intransigence(run: Run, joint: Run) -> float:
    """`metrics.intransigence` against joint training.

    Args:
        run: The run.
        joint: A run with method=joint on the same stream; after task k it has trained on tasks
            1 to k, so its diagonal is the reference.

    Raises:
        UserError: If `joint` has other images, tasks or class order, or fewer finished tasks.
    """
    if run.stream != joint.stream:
        raise UserError(
            f"{joint.path}: was trained on other images, tasks or another class order than "
            f"{run.path}; take a joint run of the same stream and seed"
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
    """`metrics.forward_transfer` over the finished tasks.

    Args:
        run: A run with trainer.record=all, on a stream where all classes come in every task.
        untrained: Accuracy of an untrained model on each task of the stream; None means chance,
            one over the number of classes. (Avalanche measures its own untrained model.)

    Raises:
        UserError: If a task brings new classes, of which nothing can be known before, or tasks to
            come were not evaluated.
    """
    classes = run.classes_of_tasks
    if any(set(task_classes) != set(classes[0]) for task_classes in classes):
        raise UserError(
            f"{run.path}: its tasks have classes of their own, so nothing can be transferred to "
            f"them before they are learned; forward transfer is for streams where all classes come "
            f"in every task"
        )
    start = [1 / len(classes[0])] * run.num_tasks if untrained is None else list(untrained)
    if len(start) != run.num_tasks:
        raise UserError(
            f"untrained: must hold an accuracy for each of the {run.num_tasks} tasks, got "
            f"{len(start)}"
        )
    ahead: list[list[float]] = []
    for after in range(1, run.tasks_done + 1):
        snapshot = run.snapshots.after(after)
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
