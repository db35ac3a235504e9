"""The mistakes of which a run was surest, with a picture and a name of each image where they were
recorded; see training/mistakes.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy
from safetensors import safe_open

from smope.analysis.run import Run

MAX_MISTAKES = 24


@dataclass(frozen=True)
class Mistake:
    """A test image that was taken for another class after the last task.

    index:       its number among all test images, in the order of tasks.
    task:        the number of the task that evaluates it, from 1.
    probability: of the predicted class.
    name:        its path, or what the stream calls it; empty if not recorded.
    jpeg:        a small picture; empty if not recorded.
    """

    index: int
    task: int
    label: str
    predicted: str
    probability: float
    name: str = ""
    jpeg: bytes = b""


@dataclass(frozen=True)
class _Recorded:
    """What mistakes.safetensors says of an image."""

    name: str
    jpeg: bytes


def worst_mistakes(run: Run, count: int = MAX_MISTAKES) -> list[Mistake]:
    """The mistakes with the highest probability of the wrong class, the surest first.

    Args:
        run: A run that recorded its evaluations.
        count: The most mistakes to return.

    Returns:
        Mistakes after the last task. Runs of older versions recorded no names and no pictures.
    """
    last = run.snapshots.last
    recorded = _read(run.path, last.tasks_done)
    wrong = numpy.flatnonzero(last.seen & ~last.correct)
    confidence = last.recorded.confidence
    order = wrong[numpy.argsort(-confidence[wrong], kind="stable")]
    if recorded:
        order = numpy.array([index for index in recorded if index in set(wrong.tolist())], int)
    empty = _Recorded("", b"")
    return [
        _mistake(run, int(index), float(confidence[index]), recorded.get(int(index), empty))
        for index in order[:count]
    ]


def _mistake(run: Run, index: int, probability: float, recorded: _Recorded) -> Mistake:
    last = run.snapshots.last
    names, predicted = run.record["class_names"], int(last.predicted[index])
    return Mistake(
        index,
        int(last.tasks[index]) + 1,
        names[last.labels[index]],
        names[predicted],
        probability,
        recorded.name,
        recorded.jpeg,
    )


def _read(run_dir: Path, tasks_done: int) -> dict[int, _Recorded]:
    """By image, the surest first; nothing if the file is missing, damaged, or of another task."""
    path = run_dir / "analysis" / "mistakes.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("tasks_done") != str(tasks_done):
                return {}
            numbers = file.get_tensor("image_of").tolist()
            content = file.get_tensor("jpeg").tobytes()
            ends = file.get_tensor("jpeg_end").tolist()
            names = json.loads(about["names"])
    except Exception:  # a page without pictures is better than none
        return {}
    files = [content[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return {
        number: _Recorded(str(name), file)
        for number, name, file in zip(numbers, names, files, strict=False)
    }
