"""The section on training: losses and learning rates, from metrics.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from smope.analysis.frames import epochs
from smope.analysis.labels import comparable
from smope.analysis.run import Run
from smope.console.markup import Grid
from smope.report.figures import Figure
from smope.report.sections.base import Section, by_label, not_shown
from smope.report.training_figures import step_curves

MAX_LINES = 6
MAX_ROWS = 60  # of the table below a figure
# Columns of metrics.csv that are no loss.
NOT_LOSSES = ("task", "phase", "epoch", "step", "learning_rate", "images_per_second")
STEP_TRACKERS = ("tensorboard", "wandb")


def training(runs: Sequence[Run]) -> Section:
    """Loss and learning rate of the first run of each configuration."""
    groups = by_label(comparable(runs))
    shown = {label: members[0] for label, members in list(groups.items())[:MAX_LINES]}
    logs = {label: epochs(run) for label, run in shown.items()}
    logged = {
        label: frame
        for label, frame in logs.items()
        if {"step", "loss"} <= set(frame) and len(frame)
    }
    figures = []
    if logged:
        figures = [_losses(logged), *_rates(logged)]
    without = [label for label in logs if label not in logged]
    lead = "Mean loss and learning rate of each epoch, as metrics.csv of the run has them."
    if without:
        lead = f"{lead} " if logged else ""
        lead += (
            f"No training steps were logged for {', '.join(without)}: a method without gradient "
            f"steps (closed form) has none, or metrics.csv is missing."
        )
    note = _steps_note([shown[label] for label in logged]) if logged else ""
    note += not_shown(groups, MAX_LINES, "curves of training")
    return Section("training", "Training", lead, figures=figures, note=note.strip())


def _steps_note(runs: Sequence[Run]) -> str:
    """Where the losses of single steps are, or how to get them."""
    trackers = {run.name: _step_tracker(run) for run in runs}
    with_log = [f"{name} ({tracker})" for name, tracker in trackers.items() if tracker]
    without = [name for name, tracker in trackers.items() if not tracker]
    text = (
        f"Losses of single steps are in the tracker of {', '.join(with_log)}." if with_log else ""
    )
    if without:
        names = ", ".join(without[:3]) + (" and others" if len(without) > 3 else "")
        text += (
            f" Single steps were not logged for {names}; train with tracker=tensorboard or "
            f"tracker=wandb to have them."
        )
    return text


def _step_tracker(run: Run) -> str:
    """The tracker that took every step of a run; empty if none did."""
    tracker: Mapping[str, Any] = run.record["config"].get("tracker") or {}
    module = str(tracker.get("_target_", "")).split(".")
    name = module[2] if len(module) > 3 else ""
    return name if name in STEP_TRACKERS and tracker.get("steps", True) else ""


def _losses(logs: Mapping[str, pandas.DataFrame]) -> Figure:
    """The loss of each configuration; of a single one, with its terms."""
    if len(logs) == 1:
        ((_, frame),) = logs.items()
        numeric = frame.select_dtypes("number")
        terms = [name for name in numeric if name not in (*NOT_LOSSES, "loss")]
        terms = [name for name in terms if not numeric[name].equals(numeric["loss"])]
        lines = {name: _line(frame, name) for name in ["loss", *terms[: MAX_LINES - 1]]}
    else:
        lines = {label: _line(frame, "loss") for label, frame in logs.items()}
    return step_curves(
        "loss",
        "Loss of each epoch",
        _joined(lines),
        label="loss",
        text=" ".join(_loss_sentence(label, frame) for label, frame in logs.items()),
        grid=_phase_grid(logs),
        caption="Lines have a gap where a task or a phase begins.",
    )


def _rates(logs: Mapping[str, pandas.DataFrame]) -> list[Figure]:
    """The learning rate of the classifier at the end of each epoch."""
    lines = {
        label: _line(frame, "learning_rate")
        for label, frame in logs.items()
        if "learning_rate" in frame
    }
    joined = _joined(lines) if lines else pandas.DataFrame()
    if joined.empty:
        return []
    highest = ", ".join(f"{label} {frame['value'].max():.3g}" for label, frame in lines.items())
    figure = step_curves(
        "learning-rate",
        "Learning rate",
        joined,
        label="learning rate",
        text=f"Highest learning rate of the classifier at the end of an epoch: {highest}.",
        grid=_rate_grid(logs),
        caption="Of the last optimizer group, the classifier.",
    )
    return [figure]


def _line(frame: pandas.DataFrame, column: str) -> pandas.DataFrame:
    """Columns part, step and value of a column of metrics.csv."""
    part = frame["task"].astype(str) + frame["phase"].astype(str)
    line = pandas.DataFrame({"part": part, "step": frame["step"], "value": frame[column]})
    return line.replace([float("inf"), float("-inf")], float("nan")).dropna()


def _joined(lines: Mapping[str, pandas.DataFrame]) -> pandas.DataFrame:
    return pandas.concat([frame.assign(line=name) for name, frame in lines.items()])


def _loss_sentence(label: str, frame: pandas.DataFrame) -> str:
    losses = frame["loss"].astype(float)
    return (
        f"{label}: loss {losses.iloc[0]:.3f} in the first epoch, {losses.iloc[-1]:.3f} in the last."
    )


def _phase_grid(logs: Mapping[str, pandas.DataFrame]) -> Grid:
    """A row for each configuration, task and phase: epochs, first and last loss."""
    return [
        ["method", "task", "phase", "epochs", "steps until", "first loss", "last loss"],
        *(
            [label, str(int(task) + 1), str(phase), str(len(rows)), str(int(rows["step"].iloc[-1]))]
            + [f"{rows['loss'].iloc[at]:.4f}" for at in (0, -1)]
            for label, task, phase, rows in _phases(logs)
        ),
    ]


def _rate_grid(logs: Mapping[str, pandas.DataFrame]) -> Grid:
    return [
        ["method", "task", "phase", "highest rate", "last rate"],
        *(
            [label, str(int(task) + 1), str(phase)]
            + [
                f"{value:.3g}"
                for value in (rows["learning_rate"].max(), rows["learning_rate"].iloc[-1])
            ]
            for label, task, phase, rows in _phases(logs)
            if "learning_rate" in rows
        ),
    ]


def _phases(logs: Mapping[str, pandas.DataFrame]) -> list[tuple[str, Any, Any, pandas.DataFrame]]:
    parts = []
    for label, frame in logs.items():
        groups: Any = frame.groupby(["task", "phase"], sort=False)
        parts += [(label, task, phase, rows) for (task, phase), rows in groups]
    return parts[:MAX_ROWS]
