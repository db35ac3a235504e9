"""The interface of experiment trackers, such as W&B, TensorBoard and CSV.

A tracker receives training steps (`log_steps`, several at a time, if it wants them), each epoch
(`log`), each task (`end_task`) and the end (`finish`). A resumed run logs the steps after its
checkpoint again. Their numbers are the same, and W&B and TensorBoard keep one of each step.
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
    """Receives the measurements of a run; this one keeps nothing.

    Attributes:
        wants_steps: Whether it uses `log_steps`.
        draw: Makes the pictures of a finished task; None for no pictures.
    """

    wants_steps: bool = False
    draw: Draw | None = None

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        """Called once before training.

        Args:
            config: The configuration as plain values.
            run_dir: The run directory.
            name: The name of the run.
            step: The training steps that a resumed run has made already.
        """

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        """Receive training steps.

        Args:
            rows: Losses and learning rates of each step, by name.
            first: The number of the first of these steps, counted from 1 over the run.
        """

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Receive an epoch: its losses and learning rate by name, after `step` training steps."""

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        """Receive the evaluation of a task.

        Args:
            matrix: The accuracy matrix so far, one row for each finished task.
            scores: The scores that follow from it, by name.
            step: The training steps so far.
        """

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        """Called once after training, even if it was stopped.

        Args:
            scores: The scores so far, by name.
            status: The status in run.json.
        """


class NoTracker(Tracker):
    """Tracks nothing beside the run directory."""


class Guarded(Tracker):
    """Passes everything on to a tracker, until that raises its first exception.

    The exception is reported once, and nothing is passed on any more: a failing service must not
    stop a run.
    """

    def __init__(self, tracker: Tracker, report: Callable[[str], object]) -> None:
        self.tracker: Tracker = tracker
        self._report = report

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
        except Exception as error:  # libraries and services raise anything
            name = type(self.tracker).__name__
            how = "did not start" if what == "start" else f"failed in {what}"
            reason = " ".join(str(error).split()) or type(error).__name__
            self._report(f"no tracking: {name} {how} ({reason}); training goes on")
            self.tracker = Tracker()


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers."""
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def task_values(matrix: Matrix, scores: Mapping[str, Any]) -> dict[str, float]:
    """The values to log after a task, by name; tasks are counted from 1.

    Args:
        matrix: The accuracy matrix so far.
        scores: The scores that follow from it.
    """
    row = matrix[-1]
    accuracies = {f"accuracy/task_{task + 1}": value for task, value in enumerate(row)}
    named = {f"scores/{key}": value for key, value in numbers(scores).items()}
    return {"task": len(matrix), "average_accuracy": sum(row) / len(row), **accuracies, **named}


def pictures(
    draw: Draw | None, matrix: Matrix, run_dir: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The pictures of a task, as arrays (height, width, 3) by name.

    Args:
        draw: Makes them; None for no pictures.
        matrix: The accuracy matrix so far.
        run_dir: The run directory.
        config: The configuration as plain values.
    """
    if draw is None:
        return {}
    import numpy
    from PIL import Image

    pngs = draw(matrix, run_dir, config)
    return {
        name: numpy.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        for name, png in pngs.items()
    }
