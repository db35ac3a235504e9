"""What every experiment tracker has in common.

The run directory has all results; a tracker shows them elsewhere too. It receives training steps
(`log_steps`, several at a time), epochs (`log`), tasks (`end_task`) and the end (`finish`). A
resumed run logs again what came after its checkpoint. These numbers are the same, and W&B and
TensorBoard keep one of each step.
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
    """Receives what a run measures; this base class ignores it.

    wants_steps: whether the tracker uses `log_steps`.
    draw:        makes the pictures of a finished task; without it, none are shown.
    report:      called with lines for the user, such as where the numbers are.
    """

    wants_steps: bool = False
    draw: Draw | None = None
    report: Callable[[str], object] = staticmethod(lambda _: None)

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        """Called once before training.

        Args:
            config: The run's configuration as plain values.
            run_dir: The run directory; its run.json is written already.
            name: The configured name of the run.
            step: Training steps so far, more than 0 in a resumed run.
        """

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        """Losses and learning rates of training steps.

        Args:
            rows: One mapping for each step.
            first: The number of the first of these steps, counted from 1 over the run.
        """

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Losses and learning rate of an epoch, which ended after `step` training steps."""

    def log_experts(self, values: Mapping[str, float], step: int) -> None:
        """How experts are used; called before `end_task` for methods that choose experts.

        Args:
            values: `effective` experts, the share that is `dead`, `max_violation`, the top-k
                `margin` and `overlap`, means over blocks; and `effective_block_1` and so on.
            step: Training steps so far.
        """

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        """Called when a task is evaluated.

        Args:
            matrix: The accuracy matrix so far, a row for each finished task.
            scores: The scores of this matrix by name.
            step: Training steps so far.
        """

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        """Called once after training, also if it failed or was interrupted.

        Args:
            scores: The scores so far by name.
            status: The status in run.json.
        """


class NoTracker(Tracker):
    """Tracks nothing beside the run directory."""


class Guarded(Tracker):
    """Forwards to a tracker until its first exception, which is printed once.

    A tracking service that fails must not stop a run.
    """

    def __init__(self, tracker: Tracker, warn: Callable[[str], object]) -> None:
        self.tracker: Tracker = tracker
        self._warn = warn

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        self._forward("start", config, run_dir, name, step)

    @property
    def wants_steps(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.tracker.wants_steps

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        self._forward("log_steps", rows, first)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._forward("log", values, step)

    def log_experts(self, values: Mapping[str, float], step: int) -> None:
        self._forward("log_experts", values, step)

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        self._forward("end_task", matrix, scores, step)

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        self._forward("finish", scores, status)

    def _forward(self, what: str, *arguments: Any) -> None:
        try:
            getattr(self.tracker, what)(*arguments)
        except Exception as error:  # the library or service may raise anything
            name = type(self.tracker).__name__
            failure = "did not start" if what == "start" else f"failed in {what}"
            reason = " ".join(str(error).split()) or type(error).__name__
            self._warn(f"no tracking: {name} {failure} ({reason}); training continues")
            self.tracker = Tracker()


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers."""
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def task_values(matrix: Matrix, scores: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies and scores after a task as numbers by name.

    Args:
        matrix: The accuracy matrix so far, a row for each finished task.
        scores: The scores of this matrix by name.
    """
    row = matrix[-1]
    accuracies = {f"accuracy/task_{task + 1}": value for task, value in enumerate(row)}
    named = {f"scores/{key}": value for key, value in numbers(scores).items()}
    return {"task": len(matrix), "average_accuracy": sum(row) / len(row), **accuracies, **named}


def pictures(
    draw: Draw | None, matrix: Matrix, run_dir: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The pictures of a finished task.

    Args:
        draw: Makes the PNGs; without it there are none.
        matrix: The accuracy matrix so far.
        run_dir: The run directory.
        config: The run's configuration.

    Returns:
        Arrays (height, width, 3) by name.
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
