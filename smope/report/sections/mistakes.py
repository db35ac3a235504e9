"""Sections that need logits: where errors come from, confidence, unknown classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import pandas

from smope.analysis.calibration import calibration, reliability
from smope.analysis.classes import class_forgetting
from smope.analysis.confusion import split_errors, task_confusion
from smope.analysis.open_set import open_set
from smope.analysis.runs import Run
from smope.errors import UserError
from smope.report.figures import (
    Figure,
    frame_grid,
    heat_map,
    lines,
    points,
    reliability_diagram,
    stacked,
)
from smope.report.sections.base import (
    MAPS,
    Section,
    Table,
    by_label,
    not_shown,
    with_evidence,
    without_evidence,
)

PARTS = {
    "within": "within the task",
    "old": "between tasks, into an older one",
    "new": "between tasks, into the newest one",
}


def _parts(frame: pandas.DataFrame) -> pandas.DataFrame:
    return pandas.DataFrame(
        {
            PARTS["within"]: frame["within_task"],
            PARTS["old"]: frame["between_tasks"] - frame["into_newest"],
            PARTS["new"]: frame["into_newest"],
        }
    )


def mistakes(runs: Sequence[Run]) -> Section | None:
    groups = by_label(with_evidence(runs))
    if not groups:
        return None
    splits = {label: [split_errors(run) for run in group] for label, group in groups.items()}
    finals = pandas.DataFrame({label: pandas.DataFrame([frame.iloc[-1] for frame in frames]).mean() for label, frames in
                               splits.items()}).T.rename_axis("method")  # fmt: skip
    shares = _parts(finals)
    by_task: Any = None
    if len(groups) == 1:
        mean: Any = pandas.concat(next(iter(splits.values()))).groupby("after_task").mean()
        by_task = _parts(mean).rename_axis("after task")
    figure = stacked(
        "errors", "Errors, by where they go", shares if by_task is None else by_task, label="% of "
                                                                                            "the "
                                                                                            "test "
                                                                                            "images seen",
        text="; ".join(_split_words(str(label), row) for label, row in shares.iterrows()) + ", "
                                                                                            "after the last task.",
        caption="An error within the task would also be made by a learner that is told the task.",
    )  # fmt: skip
    told: Any = finals[["accuracy", "told_task"]].set_axis(["accuracy", "if told the task"], axis=1)
    mapped = {
        label: mates
        for label, mates in groups.items()
        if mates[0].class_incremental and mates[0].tasks_done > 1
    }
    shown = list(mapped.items())[:MAPS]
    maps = [_task_confusion(label, group, number) for number, (label, group) in enumerate(shown, 1)]
    table = Table(
        "Accuracy over all test images after the last task, percent", frame_grid(told, "method")
    )
    lead = (
        "Class-incremental errors have two sources: classes of one task are taken for each other, "
        "or the task itself "
        "is mistaken. What a method would reach if it were told the task is beside what it reaches."
    )
    note = not_shown(mapped, MAPS, "maps of confusion") + without_evidence(runs)
    tables = [table, *_lost_classes(groups)]
    return Section("mistakes", "Where errors come from", lead, tables, [figure, *maps], note=note)


def _split_words(label: str, row: Any) -> str:
    within, between = row.iloc[0], row.iloc[1] + row.iloc[2]
    return f"{label} makes {points(within)} percent errors within and {points(between)} percent between tasks"


def _task_confusion(label: str, runs: Sequence[Run], number: int) -> Figure:
    tables = [task_confusion(run) for run in runs]
    frame = sum(tables[1:], tables[0]) / len(tables)
    values = frame.to_numpy() - numpy.diag(numpy.diag(frame.to_numpy()))
    row, column = numpy.unravel_index(values.argmax(), values.shape)
    text = f"Share of each task's images that {label} assigns to each task. " + (
        f"The largest confusion: {points(values[row, column])} percent of task {row + 1} are "
        f"taken for task "
        f"{column + 1}."
        if values.any()
        else f"All images of all {len(values)} tasks are taken for one of their own."
    )
    return heat_map(f"confusion-{number}", f"Confusion between tasks: {label}", frame, text=text)


def _lost_classes(groups: dict[str, list[Run]]) -> list[Table]:
    """The classes that lost most, of one configuration; a page full of them helps nobody."""
    if len(groups) > 1:
        return []
    ((label, runs),) = groups.items()
    tables = [class_forgetting(run) for run in runs]
    frame: Any = (
        pandas.concat(tables).groupby("name")[["learned", "best", "final", "forgetting"]].mean()
    )
    frame = frame.sort_values("forgetting", ascending=False).head(10)
    return (
        [Table(f"Classes that {label} forgot most, percent", frame_grid(frame, "class"))]
        if len(frame)
        else []
    )


def confidence(runs: Sequence[Run]) -> Section | None:
    groups = by_label(with_evidence(runs))
    if not groups:
        return None
    finals: Any = pandas.DataFrame(
        {
            label: pandas.DataFrame([calibration(run).iloc[-1] for run in group]).mean()
            for label, group in groups.items()
        }
    ).T
    names = {
        "ece": "ECE",
        "confidence": "confidence",
        "accuracy": "accuracy",
        "prediction_bias": "bias to new classes",
    }
    grid = frame_grid(finals[list(names)].rename(columns=names), "method")
    grid = [
        [*row, cell]
        for row, cell in zip(
            grid, ["Brier score", *(f"{v:.3f}" for v in finals["brier"])], strict=True
        )
    ]
    figure = reliability_diagram(
        "reliability", "Reliability after the last task", {label: _pooled(group) for label, group in groups.items()},
        text="; ".join(
            f"{label}: mean confidence {points(row['confidence'])} percent, accuracy "
            f"{points(row['accuracy'])} "
            f"percent, calibration error {points(row['ece'])}" for label, row in finals.iterrows()) + ".",
    )  # fmt: skip
    note = (
        "ECE: expected calibration error, 15 bins. Bias: share of predictions minus share of "
        "images that are of the "
        "newest task's classes. Methods whose logits are cosines (ncm) have no temperature: their "
        "confidence is low by "
        "construction."
    ) + without_evidence(runs)
    lead = "Whether a probability can be believed, and whether the newest classes are preferred."
    return Section("confidence", "Confidence", lead, [Table("After the last task, percent; Brier "
                                                            "from 0 to 2", grid)],
                   [figure], note=note)  # fmt: skip


def _pooled(runs: Sequence[Run]) -> pandas.DataFrame:
    """The reliability of all seeds' images together."""
    confidences, correct = [], []
    for run in runs:
        last = run.evidence.last
        confidences.append(last.probabilities[last.seen].max(-1))
        correct.append(last.correct[last.seen])
    return reliability(numpy.concatenate(confidences), numpy.concatenate(correct), bins=10)


def unknown(runs: Sequence[Run]) -> Section | None:
    frames = []
    for run in with_evidence(runs):
        try:
            frames.append(open_set(run).assign(label=run.label))
        except UserError:
            continue  # recorded the tasks seen alone: nothing to say
    if not frames:
        return None
    frame = pandas.concat(frames)
    means: Any = frame.groupby("label", sort=False)[["logit_auroc", "logit_fpr95", "probability_auroc",
                                                     "probability_fpr95"]].mean()  # fmt: skip
    figure = lines(
        "unknown-classes", "Telling unknown classes apart", frame, ("label", "after_task", "logit_auroc"),
        labels=("after task", "AUROC of the largest logit, %"), text="Mean over tasks: " + ", ".join(
            f"{label} {points(row['logit_auroc'])} percent" for label, row in means.iterrows()) + "; chance is 50.",
        caption="Images of classes still to come against images of known ones; 50 % is chance.",
    )  # fmt: skip
    means.columns = ["AUROC, logit", "FPR95, logit", "AUROC, probability", "FPR95, probability"]
    lead = "Classes of later tasks are unknown until they come: does the model notice? Mean over tasks below."
    table = Table("Detection of unknown classes, percent", frame_grid(means, "method"))
    return Section("unknown", "Unknown classes", lead, [table], [figure])
