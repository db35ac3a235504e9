"""Sections on probabilities: confidence and calibration, and unknown classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import pandas

from smope.analysis.calibration import calibration_scores, reliability
from smope.analysis.open_set import open_set_scores
from smope.analysis.run import Run
from smope.console.markup import Grid
from smope.errors import UserError
from smope.report.figures import (
    frame_grid,
    lines,
    points,
    reliability_diagram,
)
from smope.report.sections.base import (
    Section,
    Table,
    by_label,
    mean_of_last_rows,
    with_snapshots,
    without_snapshots,
)

RELIABILITY_BINS = 10


def confidence(runs: Sequence[Run]) -> Section | None:
    """Calibration after the last task."""
    groups = by_label(with_snapshots(runs))
    if not groups:
        return None
    finals: Any = pandas.DataFrame(
        {
            label: mean_of_last_rows([calibration_scores(run) for run in members])
            for label, members in groups.items()
        }
    ).T
    sentences = [
        f"{label}: mean confidence {points(row['confidence'])} percent, accuracy "
        f"{points(row['accuracy'])} percent, calibration error {points(row['ece'])}"
        for label, row in finals.iterrows()
    ]
    figure = reliability_diagram(
        "reliability",
        "Reliability after the last task",
        {label: _pooled_reliability(members) for label, members in groups.items()},
        text="; ".join(sentences) + ".",
    )
    note = (
        "ECE: expected calibration error, 15 bins. Bias: share of predictions minus share of "
        "images that are of the newest task's classes. Methods whose logits are cosines (ncm) have "
        "no temperature: their confidence is low by construction."
    ) + without_snapshots(runs)
    lead = "Whether a probability can be believed, and whether the newest classes are preferred."
    table = Table("After the last task, percent; Brier from 0 to 2", _calibration_grid(finals))
    return Section("confidence", "Confidence", lead, [table], [figure], note=note)


def _calibration_grid(finals: Any) -> Grid:
    names = {
        "ece": "ECE",
        "confidence": "confidence",
        "accuracy": "accuracy",
        "prediction_bias": "bias to new classes",
    }
    grid = frame_grid(finals[list(names)].rename(columns=names), "method")
    brier = ["Brier score", *(f"{value:.3f}" for value in finals["brier"])]
    return [[*row, cell] for row, cell in zip(grid, brier, strict=True)]


def _pooled_reliability(runs: Sequence[Run]) -> pandas.DataFrame:
    """The reliability of all seeds' images together."""
    confidences, correct = [], []
    for run in runs:
        last = run.snapshots.last
        confidences.append(last.recorded.confidence[last.seen])
        correct.append(last.correct[last.seen])
    return reliability(
        numpy.concatenate(confidences), numpy.concatenate(correct), bins=RELIABILITY_BINS
    )


def unknown(runs: Sequence[Run]) -> Section | None:
    """Detection of classes of later tasks; None if no run recorded images of them."""
    frames = []
    for run in with_snapshots(runs):
        try:
            frames.append(open_set_scores(run).assign(label=run.label))
        except UserError:
            continue  # this run recorded only the tasks seen
    if not frames:
        return None
    frame = pandas.concat(frames)
    names = {
        "logit_auroc": "AUROC, logit",
        "logit_fpr95": "FPR95, logit",
        "probability_auroc": "AUROC, probability",
        "probability_fpr95": "FPR95, probability",
    }
    means: Any = frame.groupby("label", sort=False)[list(names)].mean()
    values = ", ".join(
        f"{label} {points(row['logit_auroc'])} percent" for label, row in means.iterrows()
    )
    figure = lines(
        "unknown-classes",
        "Telling unknown classes apart",
        frame,
        ("label", "after_task", "logit_auroc"),
        labels=("after task", "AUROC of the largest logit, %"),
        text=f"Mean over tasks: {values}; chance is 50.",
        caption="Images of classes still to come against images of known ones; 50 % is chance.",
    )
    lead = (
        "Classes of later tasks are unknown until they come: does the model notice? Mean over "
        "tasks below."
    )
    grid = frame_grid(means.rename(columns=names), "method")
    table = Table("Detection of unknown classes, percent", grid)
    return Section("unknown", "Unknown classes", lead, [table], [figure])
