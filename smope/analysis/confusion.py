"""Errors: within the task of the image, or into another task.

An error is *within the task* where the predicted class is one of the image's own task, else
*between tasks*. The first kind is what a task-incremental learner would get wrong as well; the
second comes from not knowing the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import pandas
from numpy.typing import NDArray
from scipy.sparse import csr_array

from smope.analysis.run import Run
from smope.analysis.snapshots import Snapshot
from smope.errors import UserError


def _membership(run: Run) -> NDArray[numpy.bool_]:
    """(T, classes): which classes each task has."""
    table = numpy.zeros((run.num_tasks, len(run.record["class_names"])), dtype=bool)
    for task, classes in enumerate(run.classes_of_tasks):
        table[task, classes] = True
    return table


def split_errors(run: Run) -> pandas.DataFrame:
    """Accuracy and errors after each task, as fractions of the images of all tasks seen.

    after_task    number of finished tasks
    images        number of images
    accuracy      share of right images, which weighs tasks by their images
    within_task   share of errors into a class of the image's own task
    between_tasks share of errors into another task; adds to 1 with the two above
    into_newest   the part of between_tasks that went to the newest task
    known_task    accuracy if only the classes of the image's own task compete, which is
                  task-incremental accuracy
    """
    return pandas.DataFrame([_split(run, after) for after in run.snapshots.recorded])


def _split(run: Run, after: int) -> dict[str, float]:
    snapshot, member = run.snapshots.after(after), _membership(run)
    seen = snapshot.seen
    labels, predicted, tasks = snapshot.labels[seen], snapshot.predicted[seen], snapshot.tasks[seen]
    wrong = predicted != labels
    within = wrong & member[tasks, predicted]
    between = wrong & ~within
    newest = between & member[after - 1, predicted]
    return {
        "after_task": after,
        "images": int(seen.sum()),
        "accuracy": float((~wrong).mean()),
        "within_task": float(within.mean()),
        "between_tasks": float(between.mean()),
        "into_newest": float(newest.mean()),
        "known_task": float(_right_within_task(snapshot, member).mean()),
    }


def _right_within_task(snapshot: Snapshot, member: NDArray[numpy.bool_]) -> NDArray[numpy.bool_]:
    """Whether each seen image is classified right among its own task's classes."""
    best = snapshot.recorded.best_in_task(member, snapshot.tasks)
    return (best == snapshot.labels)[snapshot.seen]


def task_confusion(run: Run, after: int | None = None) -> pandas.DataFrame:
    """Row: task of the image; column: task of the predicted class.

    Args:
        run: A run that recorded its evaluations.
        after: After which task, from 1; None means the last.

    Returns:
        Fractions of a row's images; rows add to 1.

    Raises:
        UserError: If a class belongs to several tasks, so that a prediction names no task.
    """
    if not run.class_incremental:
        raise UserError(
            f"{run.path}: classes come in several tasks, so a predicted class names no task; "
            f"leave it out"
        )
    snapshot = run.snapshots.after(after) if after else run.snapshots.last
    task_of = _membership(run).argmax(0)
    seen = snapshot.seen
    counts = _pairs(snapshot.tasks[seen], task_of[snapshot.predicted[seen]], snapshot.tasks_done)
    table = counts / counts.sum(1, keepdims=True)
    names = range(1, snapshot.tasks_done + 1)
    return pandas.DataFrame(
        table, pandas.Index(names, name="task"), pandas.Index(names, name="predicted task")
    )


def class_counts(run: Run, after: int | None = None) -> csr_array:
    """Numbers of images, which fit into memory for any number of classes.

    Args:
        run: A run that recorded its evaluations.
        after: After which task, from 1; None means the last.

    Returns:
        (C, C) sparse: row the class of the image, column the predicted class.
    """
    snapshot = run.snapshots.after(after) if after else run.snapshots.last
    classes = snapshot.recorded.num_classes
    known = snapshot.seen & (snapshot.labels < classes)
    pairs, images = numpy.unique(
        snapshot.labels[known] * classes + snapshot.predicted[known], return_counts=True
    )
    return csr_array((images, numpy.divmod(pairs, classes)), shape=(classes, classes))


def class_confusion(run: Run, after: int | None = None) -> pandas.DataFrame:
    """Row: class of the image; column: predicted class; as Avalanche's ConfusionMatrix.

    Args:
        run: A run that recorded its evaluations.
        after: After which task, from 1; None means the last.

    Returns:
        Numbers of images.
    """
    counts = class_counts(run, after).toarray()
    names = run.record["class_names"][: len(counts)]
    return pandas.DataFrame(
        counts, pandas.Index(names, name="class"), pandas.Index(names, name="predicted")
    )


def confused_pairs(counts: pandas.DataFrame, count: int = 20) -> pandas.DataFrame:
    """The pairs of classes that are confused most, by number of images.

    Args:
        counts: What `class_confusion` returns, or a sum of several.
        count: The most pairs to return.

    Returns:
        Columns class, predicted, images (of the class taken for the other), share (of the class's
        images), back (images of the other class that are taken for this one). Pairs without an
        image are left out.
    """
    return most_confused(csr_array(counts.to_numpy()), list(counts.index), count)


def most_confused(counts: csr_array, names: Sequence[str], count: int) -> pandas.DataFrame:
    """`confused_pairs` of what `class_counts` returns.

    Args:
        counts: (C, C) numbers of images.
        names: of the classes, by label.
        count: The most pairs to return.

    Returns:
        As `confused_pairs`.
    """
    of_class, cells = counts.sum(1), counts.tocoo()
    images: Any = cells.data
    wrong = numpy.flatnonzero((cells.row != cells.col) & (images > 0))
    order = wrong[numpy.argsort(-images[wrong], kind="stable")[:count]]
    pairs = [
        (
            names[row],
            names[column],
            int(number),
            float(number / of_class[row]),
            int(counts[column, row]),
        )
        for row, column, number in zip(
            cells.row[order], cells.col[order], images[order], strict=True
        )
    ]
    return pandas.DataFrame(pairs, columns=["class", "predicted", "images", "share", "back"])


def _pairs(rows: NDArray, columns: NDArray, size: int) -> NDArray[numpy.int64]:
    """How often each pair of numbers below `size` occurs, (size, size)."""
    return numpy.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
