"""Experiment trackers beside the run directory, which has it all: W&B, TensorBoard, CSV. No other
file knows them.

A tracker hears of training steps (`log_steps`, some at a time, if it wants), each epoch (`log`),
each task (`end_task`) and the end (`finish`). A resumed run logs again what came after its
checkpoint; these numbers are the same, and W&B and TensorBoard keep one of each step.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Matrix = Sequence[Sequence[float]]
Draw = Callable[[Matrix, Path, Mapping[str, Any]], dict[str, bytes]]
"""From the accuracy matrix, the run directory and its configuration to PNGs by name."""


class Tracker:
    """Receives what a run measures; this one keeps nothing.

    wants_steps: whether `log_steps` is of any use to it.
    draw: makes the pictures of a finished task; none are shown where it is not set.
    """

    wants_steps: bool = False
    draw: Draw | None = None

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        """Called once before training, or before going on after `step` training steps."""

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        """Losses and learning rates of training steps `first`, `first` + 1 and so on, counted from
        1 over the run.
        """

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """One epoch's losses and learning rate."""

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        """A task is evaluated: the accuracy matrix so far, a row a task, and the scores that
        follow from it.
        """

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        """Called once after training, also where it was broken off, with the scores so far and
        run.json's status.
        """


class NoTracker(Tracker):
    """Tracks nothing beside the run directory."""


class Guarded(Tracker):
    """Passes everything on; at the first exception it tells once and passes nothing on any more.

    Whatever a service answers must not cost a run.
    """

    def __init__(self, tracker: Tracker, tell: Callable[[str], object]) -> None:
        self.tracker: Tracker = tracker
        self._tell = tell

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        self._pass_on("start", config, run_dir, name, step)

    @property
    def wants_steps(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.tracker.wants_steps

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        self._pass_on("log_steps", rows, first)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._pass_on("log", values, step)

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        self._pass_on("end_task", matrix, scores, step)

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        self._pass_on("finish", scores, status)

    def _pass_on(self, what: str, *arguments: Any) -> None:
        try:
            getattr(self.tracker, what)(*arguments)
        except Exception as error:  # of a library or service of somebody else's
            name = type(self.tracker).__name__
            how = "did not start" if what == "start" else f"failed in {what}"
            reason = " ".join(str(error).split()) or type(error).__name__
            self._tell(f"no tracking: {name} {how} ({reason}); training goes on")
            self.tracker = Tracker()


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def task_values(matrix: Matrix, scores: Mapping[str, Any]) -> dict[str, float]:
    """What is known after a task, by name; tasks counted from 1."""
    row = matrix[-1]
    accuracies = {f"accuracy/task_{task + 1}": value for task, value in enumerate(row)}
    named = {f"scores/{key}": value for key, value in numbers(scores).items()}
    return {"task": len(matrix), "average_accuracy": sum(row) / len(row), **accuracies, **named}


def pictures(
    draw: Draw | None, matrix: Matrix, run_dir: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    """What `draw` makes of a task, as arrays (height, width, 3); nothing without `draw`."""
    if draw is None:
        return {}
    import numpy
    from PIL import Image

    pngs = draw(matrix, run_dir, config)
    return {
        name: numpy.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        for name, png in pngs.items()
    }
