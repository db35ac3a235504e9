"""What a run has measured so far. It goes into run.json and into every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smope.errors import UserError
from smope.metrics.scores import all_scores


@dataclass
class History:
    """Accuracies, times and counts of a run.

    Attributes:
        test_images: number of test images of each task.
        accuracy_matrix: a row for each finished task, with the accuracy on each task so far as a
            fraction.
        seconds: wall-clock totals. `wait`, the time that steps waited for images, is part of
            `train`.
        seconds_per_task: training, alignment and evaluation of each finished task.
        seconds_of_task: the same of the task under way.
        images_trained: images that went through a training step; grows when an epoch ends.
        steps: training steps; grows when an epoch ends.
        images_evaluated: test images that passed through the network.
        peak_memory: the most bytes of one process, over all processes of this run; see
            metrics/cost.py.
        expert_use: after each task, how the test images use the experts; see
            metrics/expert_use.py. Empty for a method that chooses no experts.
    """

    test_images: list[int]
    accuracy_matrix: list[list[float]] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"train": 0.0, "align": 0.0, "eval": 0.0, "wait": 0.0}
    )
    seconds_per_task: list[float] = field(default_factory=list)
    seconds_of_task: float = 0.0
    images_trained: int = 0
    steps: int = 0
    images_evaluated: int = 0
    peak_memory: dict[str, int] = field(default_factory=dict)
    expert_use: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tracker_step(self) -> int:
        """The x value for trackers: training steps so far, or tasks for a method without steps."""
        return self.steps or len(self.accuracy_matrix)

    @classmethod
    def read(cls, values: Mapping[str, Any], path: Path) -> History:
        """Read what as_dict() gave. A file's hash says only that nobody changed it, so every value
        is checked.

        Args:
            values: the history in a checkpoint.
            path: the checkpoint, for the error.

        Returns:
            The history.

        Raises:
            UserError: a value cannot be one of a history.
        """
        fresh = cls([]).as_dict()
        invalid = [
            key
            for key, value in {"test_images": None, **values}.items()
            if key not in fresh or not _fits(key, value, fresh[key])
        ]
        if invalid:
            raise UserError(
                f"checkpoint {path}: its record of the run makes no sense ({', '.join(invalid)}); "
                f"delete it, then resume from the one before"
            )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def add_seconds(self, work: str, seconds: float) -> None:
        """Add time of the task under way.

        Args:
            work: train, align or eval.
            seconds: wall-clock time.
        """
        self.seconds[work] += seconds
        self.seconds_of_task += seconds

    def note_memory(self, peaks: dict[str, int]) -> None:
        """Keep the larger of each peak and the one noted before."""
        for kind, size in peaks.items():
            self.peak_memory[kind] = max(size, self.peak_memory.get(kind, 0))

    def end_task(self, row: list[float], use: dict[str, Any] | None = None) -> None:
        """Finish the task under way.

        Args:
            row: the accuracy on each task so far.
            use: how experts were used meanwhile; None without a choice of experts.
        """
        if use is not None:
            self.expert_use.append(use)
        self.accuracy_matrix.append(row)
        self.seconds_per_task.append(self.seconds_of_task)
        self.seconds_of_task = 0.0

    def full_matrix(self) -> list[list[float | None]]:
        """The accuracy matrix (T, T), None where nothing was measured."""
        tasks = len(self.test_images)
        rows: list[list[float | None]] = [
            [*row, *([None] * (tasks - len(row)))] for row in self.accuracy_matrix
        ]
        return rows + [[None] * tasks for _ in range(tasks - len(rows))]

    def scores(self) -> dict[str, float | None]:
        """The scores over the tasks learned so far, as fractions; None before the first."""
        return all_scores(self.accuracy_matrix, self.test_images)

    def record(self) -> dict[str, Any]:
        """The part of run.json that changes during a run."""
        experts = {"experts": self.expert_use} if self.expert_use else {}
        return {
            "accuracy_matrix": self.full_matrix(),
            **self.scores(),
            **experts,
            "seconds": {**self.seconds, "per_task": self.seconds_per_task},
            "images_per_second": _ratio(self.images_trained, self.seconds["train"]),
            "waiting_share": _ratio(self.seconds["wait"], self.seconds["train"]),
        }

    def cost(self) -> dict[str, Any]:
        """The measured part of the block `cost` of run.json.

        Rates are over all seconds of a kind, including passes after the last step of a task and
        checkpoints.
        """
        return {
            "seconds": {work: self.seconds[work] for work in ("train", "align", "eval")},
            "images_per_second": {
                "train": _ratio(self.images_trained, self.seconds["train"]),
                "infer": _ratio(self.images_evaluated, self.seconds["eval"]),
            },
            "waiting_share": _ratio(self.seconds["wait"], self.seconds["train"]),
            "peak_memory_bytes": dict(self.peak_memory),
        }


def _fits(key: str, value: Any, example: Any) -> bool:
    """Whether a value from JSON can be that of a field which starts as `example`."""
    if key == "accuracy_matrix":
        return _is_triangle(value)
    if key == "expert_use":
        return isinstance(value, list) and all(isinstance(use, dict) for use in value)
    if isinstance(example, list | dict):
        names = set(example)  # empty where any names will do, and for a list
        return _are_numbers(value, type(example)) and (not names or set(value) == names)
    return _is_number(value)


def _is_triangle(rows: Any) -> bool:
    """Whether `rows` is a list of lists of 1, 2, 3 and so on numbers."""
    return isinstance(rows, list) and all(
        _are_numbers(row, list) and len(row) == length for length, row in enumerate(rows, start=1)
    )


def _are_numbers(value: Any, kind: type) -> bool:
    """Whether `value` is a list or dict, as `kind` says, of numbers."""
    if not isinstance(value, kind):
        return False
    members = value.values() if isinstance(value, dict) else value
    return all(map(_is_number, members))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _ratio(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None
