"""Sections on errors: within and between tasks, the confusion of tasks, forgotten classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import pandas

from smope.analysis.classes import class_forgetting
from smope.analysis.confusion import split_errors, task_confusion
from smope.analysis.run import Run
from smope.report.figures import (
    Figure,
    frame_grid,
    heat_map,
    points,
    stacked,
)
from smope.report.sections.base import (
    MAX_MAPS,
    Section,
    Table,
    by_label,
    mean_of_last_rows,
    not_shown,
    with_snapshots,
    without_snapshots,
)

# Kinds of errors, in the words of the page.
WITHIN_TASK = "within the task"
INTO_OLDER = "between tasks, into an older one"
INTO_NEWEST = "between tasks, into the newest one"
MAX_FORGOTTEN_CLASSES = 10
MAX_BARS = 25  # tasks with a bar of errors


def _error_kinds(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Shares of errors by kind, from columns of `split_errors`."""
    return pandas.DataFrame(
        {
            WITHIN_TASK: frame["within_task"],
            INTO_OLDER: frame["between_tasks"] - frame["into_newest"],
            INTO_NEWEST: frame["into_newest"],
        }
    )


def mistakes(runs: Sequence[Run]) -> Section | None:
    """Errors within and between tasks, confusion of tasks, forgotten classes."""
    groups = by_label(with_snapshots(runs))
    if not groups:
        return None
    splits = {label: [split_errors(run) for run in members] for label, members in groups.items()}
    finals = pandas.DataFrame(
        {label: mean_of_last_rows(frames) for label, frames in splits.items()}
    ).T.rename_axis("method")
    known_task: Any = finals[["accuracy", "known_task"]]
    known_task = known_task.set_axis(["accuracy", "if the task is known"], axis=1)
    tables = [
        Table(
            "Accuracy over all test images after the last task, percent",
            frame_grid(known_task, "method"),
        ),
        *_forgotten_classes(groups),
    ]
    mapped = {
        label: members
        for label, members in groups.items()
        if members[0].class_incremental and members[0].tasks_done > 1
    }
    maps = [
        _task_confusion_map(label, members, number)
        for number, (label, members) in enumerate(list(mapped.items())[:MAX_MAPS], 1)
    ]
    lead = (
        "Class-incremental errors have two sources: classes of one task are taken for each other, "
        "or the task itself is mistaken. What a method would reach if the task were known is "
        "beside what it reaches."
    )
    note = not_shown(mapped, MAX_MAPS, "maps of confusion") + without_snapshots(runs)
    figures = [_error_figure(finals, splits), *maps]
    return Section("mistakes", "Where errors come from", lead, tables, figures, note=note)


def _error_figure(
    finals: pandas.DataFrame, splits: Mapping[str, Sequence[pandas.DataFrame]]
) -> Figure:
    """Errors of each method after the last task, or of a single method after each task."""
    shares = shown = _error_kinds(finals)
    if len(splits) == 1:
        (frames,) = splits.values()
        mean: Any = pandas.concat(frames).groupby("after_task").mean()
        every = -(-len(mean) // MAX_BARS)
        shown = _error_kinds(mean[::-1][::every][::-1]).rename_axis("after task")
    sentences = [_error_sentence(str(label), row) for label, row in shares.iterrows()]
    return stacked(
        "errors",
        "Errors, by where they go",
        shown,
        label="% of the test images seen",
        text="; ".join(sentences) + ", after the last task.",
        caption="An error within the task would also be made by a learner that knows the task.",
    )


def _error_sentence(label: str, row: Any) -> str:
    within = points(row[WITHIN_TASK])
    between = points(row[INTO_OLDER] + row[INTO_NEWEST])
    return f"{label} makes {within} percent errors within and {between} percent between tasks"


def _task_confusion_map(label: str, runs: Sequence[Run], number: int) -> Figure:
    tables = [task_confusion(run) for run in runs]
    frame = sum(tables[1:], tables[0]) / len(tables)
    values = frame.to_numpy() - numpy.diag(numpy.diag(frame.to_numpy()))
    text = f"Share of each task's images that {label} assigns to each task. "
    if values.any():
        row, column = numpy.unravel_index(values.argmax(), values.shape)
        text += (
            f"The largest confusion: {points(values[row, column])} percent of task {row + 1} are "
            f"taken for task {column + 1}."
        )
    else:
        text += f"All images of all {len(values)} tasks are taken for one of their own."
    return heat_map(f"confusion-{number}", f"Confusion between tasks: {label}", frame, text=text)


def _forgotten_classes(groups: Mapping[str, Sequence[Run]]) -> list[Table]:
    """The most forgotten classes of a single configuration; for several, the page has none."""
    if len(groups) > 1:
        return []
    ((label, runs),) = groups.items()
    classes = pandas.concat([class_forgetting(run) for run in runs])
    frame: Any = classes.groupby("name")[["learned", "best", "final", "forgetting"]].mean()
    frame = frame.sort_values("forgetting", ascending=False, kind="stable").head(
        MAX_FORGOTTEN_CLASSES
    )
    if frame.empty:
        return []
    return [Table(f"Classes that {label} forgot most, percent", frame_grid(frame, "class"))]
