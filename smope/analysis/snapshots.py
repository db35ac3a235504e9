"""What evaluation recorded after each task, as arrays; training/recording.py writes the files.

Shapes: N test images of all tasks, M of them evaluated, C classes seen, L prompted blocks, H heads,
E experts, K chosen experts, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy
from numpy.typing import NDArray
from safetensors import safe_open

from smope.analysis.recorded_logits import AllLogits, RecordedLogits, TopLogits
from smope.errors import UserError

ALL_LOGITS, TOP_LOGITS = "1", "2"  # format versions


@dataclass(frozen=True)
class Snapshot:
    """One evaluation, after `tasks_done` tasks.

    recorded: the logits, or a summary of them; predicted, labels and tasks (M,) int64, tasks
    counted from 0; experts (M, L, H, K), keys and values (L, H, E, D), counts (L, H, E), each None
    where the method has none.
    """

    tasks_done: int
    recorded: RecordedLogits
    predicted: NDArray[numpy.int64]
    labels: NDArray[numpy.int64]
    tasks: NDArray[numpy.int64]
    experts: NDArray[numpy.int64] | None = None
    keys: NDArray[numpy.float32] | None = None
    values: NDArray[numpy.float32] | None = None
    counts: NDArray[numpy.int64] | None = None

    @property
    def seen(self) -> NDArray[numpy.bool_]:
        """(M,) which images belong to the tasks seen so far."""
        return self.tasks < self.tasks_done

    @property
    def correct(self) -> NDArray[numpy.bool_]:
        return self.predicted == self.labels

    @property
    def logits(self) -> NDArray[numpy.float32]:
        """(M, C) over the classes seen so far; UserError where only the largest were recorded."""
        return self._all_logits.values

    @property
    def probabilities(self) -> NDArray[numpy.float64]:
        """Softmax over the C classes seen so far, (M, C); UserError as for `logits`."""
        return self._all_logits.probabilities

    @property
    def _all_logits(self) -> AllLogits:
        if not isinstance(self.recorded, AllLogits):
            raise UserError(
                f"the evaluation after task {self.tasks_done} recorded the largest logits alone "
                f"(trainer.record=top, or auto for a large run); use Snapshot.recorded, or train "
                f"the run again with trainer.record=seen"
            )
        return self.recorded

    @property
    def num_experts(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]


class Snapshots:
    """The files in analysis/ of a run directory, read when they are needed.

    tasks_done: how many finished tasks run.json has, None for no limit. A run that was killed
    before it wrote run.json, or was resumed from an older checkpoint, has files of later tasks.
    They belong to no row of its accuracy matrix and are ignored.
    """

    def __init__(self, run_dir: Path, tasks_done: int | None = None) -> None:
        self.run_dir = run_dir
        self.tasks_done = tasks_done
        self._snapshots: dict[int, Snapshot] = {}

    @cached_property
    def _images(self) -> dict[str, NDArray]:
        return _read(self.run_dir / "analysis" / "images.safetensors", self.run_dir)

    @property
    def labels(self) -> NDArray[numpy.int64]:
        """(N,) of every task's test images."""
        return self._images["labels"].astype(numpy.int64)

    @property
    def tasks(self) -> NDArray[numpy.int64]:
        """(N,) which task evaluates the image, counted from 0."""
        return self._images["tasks"].astype(numpy.int64)

    @property
    def examples(self) -> tuple[NDArray[numpy.uint8], NDArray[numpy.int64]]:
        """A few images (n, s, s, 3), and which of the N they are."""
        return self._images["examples"], self._images["example_of"].astype(numpy.int64)

    @property
    def recorded(self) -> list[int]:
        """After which finished tasks there is a snapshot, from 1; some may be missing."""
        paths = (self.run_dir / "analysis").glob("task-*.safetensors")
        numbers = sorted(int(path.stem.partition("-")[2]) for path in paths)
        return [
            number for number in numbers if self.tasks_done is None or number <= self.tasks_done
        ]

    def after(self, tasks_done: int) -> Snapshot:
        """The evaluation after `tasks_done` tasks; UserError if none was recorded."""
        if tasks_done not in self._snapshots:
            path = self.run_dir / "analysis" / f"task-{tasks_done:03d}.safetensors"
            arrays = _read(path, self.run_dir)
            count = len(arrays["predicted"])
            self._snapshots[tasks_done] = Snapshot(
                tasks_done,
                _recorded_logits(arrays),
                arrays["predicted"].astype(numpy.int64),
                self.labels[:count],
                self.tasks[:count],
                experts=_blocks(arrays, "experts", 1),
                keys=_blocks(arrays, "keys", 0),
                values=_blocks(arrays, "values", 0),
                counts=_blocks(arrays, "counts", 0),
            )
        return self._snapshots[tasks_done]

    @property
    def last(self) -> Snapshot:
        """The latest evaluation; UserError if there is none."""
        return self.after(self.recorded[-1] if self.recorded else 1)


def _blocks(arrays: dict[str, NDArray], name: str, axis: int) -> NDArray | None:
    """The arrays of all blocks, stacked; None without any, or if their shapes differ."""
    blocks = [arrays[key] for key in sorted(arrays, key=_number) if key.startswith(f"{name}.")]
    if not blocks or len({array.shape for array in blocks}) > 1:
        return None
    stacked = numpy.stack(blocks, axis=axis)
    return stacked.astype(numpy.int64) if stacked.dtype.kind in "ui" else stacked


def _recorded_logits(arrays: dict[str, NDArray]) -> RecordedLogits:
    """The logits; newer files store them minus the largest of each image, which is in `top`."""
    if "logits" not in arrays:
        return TopLogits(arrays, int(arrays["classes"]))
    logits = arrays["logits"].astype(numpy.float32)
    return AllLogits(logits + arrays["top"][:, None] if "top" in arrays else logits)


def _number(key: str) -> tuple[str, int]:
    name, _, number = key.partition(".")
    return name, int(number or 0)


def _read(path: Path, run_dir: Path) -> dict[str, NDArray]:
    if not path.is_file():
        raise UserError(
            f"{run_dir}: holds no analysis/{path.name}: this run kept no logits "
            f"(trainer.record=nothing, or an older version of smope, or a task not yet learned); "
            f"train it again with trainer.record=seen"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            version = about.get("format_version")
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); train the run again"
        ) from error
    if version not in (ALL_LOGITS, TOP_LOGITS):
        raise UserError(
            f"{path}: has format version {version}, this version reads {ALL_LOGITS} "
            f"and {TOP_LOGITS}; use the run's own version"
        )
    if version == TOP_LOGITS:
        arrays["classes"] = numpy.array(int(about["classes"]))
    return arrays
