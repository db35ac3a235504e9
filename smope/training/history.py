"""What a run has measured so far: it goes into run.json and, for resuming, into every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smope.errors import UserError
from smope.metrics.scores import all_scores


@dataclass
class History:
    """accuracy_matrix: one row a finished task, fractions; test_images: of each task; seconds:
    wall-clock totals, with `wait` (of training steps for their images) as part of `train`;
    seconds_per_task: training, alignment and evaluation together; seconds_of_task: of the one under
    way; images_trained: images that went through a step, and `steps` those steps, which grow with
    each epoch that ends; images_evaluated: test images that were classified;
    peak_memory: bytes of one process, see metrics/cost.py, the most of all those that this run has
    had.
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

    @property
    def place(self) -> int:
        """Where a tracker puts what is measured now: training steps so far, or tasks for a method
        that takes none.
        """
        return self.steps or len(self.accuracy_matrix)

    @classmethod
    def read(cls, values: Mapping[str, Any], path: Path) -> History:
        """What as_dict() gave, from the checkpoint `path`. UserError where it is none: hashes tell
        only that a file is as it was written.
        """
        fresh = cls([]).as_dict()
        needed = {"test_images": None, **values}
        odd = [
            key
            for key, value in needed.items()
            if key not in fresh or not _fits(key, value, fresh[key])
        ]
        if odd:
            raise UserError(
                f"checkpoint {path}: its record of the run makes no sense ({', '.join(odd)}); "
                f"delete it, then resume "
                "from the one before"
            )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def add_seconds(self, what: str, seconds: float) -> None:
        """Time spent on training, alignment or evaluation, of the task under way."""
        self.seconds[what] += seconds
        self.seconds_of_task += seconds

    def note_memory(self, now: dict[str, int]) -> None:
        self.peak_memory |= {
            what: max(size, self.peak_memory.get(what, 0)) for what, size in now.items()
        }

    def end_task(self, row: list[float]) -> None:
        """The task under way is done; `row` is the accuracy on each task so far."""
        self.accuracy_matrix.append(row)
        self.seconds_per_task.append(self.seconds_of_task)
        self.seconds_of_task = 0.0

    def full_matrix(self) -> list[list[float | None]]:
        """T x T, None where nothing was measured."""
        tasks = len(self.test_images)
        rows: list[list[float | None]] = [
            [*row, *([None] * (tasks - len(row)))] for row in self.accuracy_matrix
        ]
        return rows + [[None] * tasks for _ in range(tasks - len(rows))]

    def scores(self) -> dict[str, float | None]:
        """The scores over the tasks learned so far, as fractions; None before the first."""
        return all_scores(self.accuracy_matrix, self.test_images)

    def record(self) -> dict[str, Any]:
        """The part of run.json that changes while a run goes on."""
        return {
            "accuracy_matrix": self.full_matrix(),
            **self.scores(),
            "seconds": {**self.seconds, "per_task": self.seconds_per_task},
            "images_per_second": _ratio(self.images_trained, self.seconds["train"]),
            "waiting_share": _ratio(self.seconds["wait"], self.seconds["train"]),
        }

    def cost(self) -> dict[str, Any]:
        """What was measured for the block `cost` of run.json; rates are over all seconds of a kind,
        passes after a task's last step and checkpoints included.
        """
        return {
            "seconds": {what: self.seconds[what] for what in ("train", "align", "eval")},
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
        rows: list[Any] = value if isinstance(value, list) else [None]
        return all(
            _are_numbers(row, list) and len(row) == length
            for length, row in enumerate(rows, start=1)
        )
    if isinstance(example, list | dict):
        names = set(example)  # none where any will do, as in a list
        return _are_numbers(value, type(example)) and (not names or set(value) == names)
    return _is_number(value)


def _are_numbers(value: Any, kind: type) -> bool:
    """Whether `value` is a list or dict, as `kind` says, of numbers."""
    return isinstance(value, kind) and all(
        map(_is_number, value.values() if isinstance(value, dict) else value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _ratio(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None
