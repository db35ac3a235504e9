"""Run directories written by hand: every number in them is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.numpy import save_file

from smope.analysis.loading import load_runs
from smope.analysis.run import Run
from smope.training.top_logits import summarised

# Two tasks of two classes; four test images each. After task 1 the first task is all right; after
# task 2 one image of class 0 goes to class 1 (within the task) and one of class 1 to class 2
# (between tasks).
LABELS = [0, 0, 1, 1, 2, 2, 3, 3]
TASKS = [0, 0, 0, 0, 1, 1, 1, 1]
PREDICTED = {1: [0, 0, 1, 1], 2: [0, 1, 1, 2, 2, 2, 3, 3]}
MATRIX = [[1.0, None], [0.5, 1.0]]


def logits_for(predicted: list[int], classes: int, size: float = 2.0) -> numpy.ndarray:
    """`size` for the predicted class, 0 for the others."""
    return size * (numpy.array(predicted)[:, None] == numpy.arange(classes)).astype(numpy.float16)


def write_run(
    path: Path, *, snapshots: dict[int, dict[str, Any]] | None = None, **changes: Any
) -> Path:
    """A finished run of MATRIX, changed at will; `snapshots`: arrays after each task, or none."""
    record: dict[str, Any] = {
        "format_version": 1,
        "status": "finished",
        "seed": 0,
        "method": "smope",
        "accuracy_matrix": MATRIX,
        "stream": {"name": "made", "content_hash": "c", "identity": "i"},
        "class_names": ["a", "b", "c", "d"],
        "tasks": [
            {"name": f"task {t}", "classes": [2 * t, 2 * t + 1], "train": 4, "test": 4}
            for t in range(2)
        ],
        "config": {
            "seed": 0,
            "name": "made",
            "method": {"_target_": "smope.methods.smope.SMoPE", "num_experts": 4},
        },
        "evaluated_on": "test",
        "trainable_parameters": {"prompt": 10, "classifier": 4},
        "images_per_second": 2.0,
        "seconds": {"train": 1.0, "align": 0.5, "eval": 0.25, "wait": 0.0, "per_task": [1.0, 0.75]},
        "device": "cpu",
        "threads": 1,
        "config_hash": "0" * 12,
    }
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({**record, **changes}), encoding="utf-8")
    (path / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
    if snapshots is not None:
        write_snapshots(path, snapshots)
    return path


def write_snapshots(path: Path, snapshots: dict[int, dict[str, Any]]) -> None:
    folder = path / "analysis"
    folder.mkdir()
    images = {
        "labels": numpy.array(LABELS, numpy.uint16),
        "tasks": numpy.array(TASKS, numpy.uint16),
        "source_index": numpy.arange(len(LABELS), dtype=numpy.uint32),
        "examples": numpy.arange(2 * 4 * 4 * 3, dtype=numpy.uint8).reshape(2, 4, 4, 3),
        "example_of": numpy.array([0, 4], numpy.uint32),
    }
    save_file(images, folder / "images.safetensors", {"format_version": "1"})
    for after, arrays in snapshots.items():
        contiguous = {key: numpy.ascontiguousarray(value) for key, value in arrays.items()}
        metadata = {"format_version": "1" if "logits" in arrays else "2", "classes": str(2 * after)}
        save_file(contiguous, folder / f"task-{after:03d}.safetensors", metadata)


def with_top_logits(snapshots: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The same evaluations of the tasks seen, as trainer.record=top keeps them."""
    changed = {}
    for after, arrays in snapshots.items():
        logits = torch.tensor(arrays["logits"][: 4 * after]).float()
        rows = [
            summarised(
                logits[4 * task : 4 * task + 4],
                torch.tensor(LABELS[4 * task : 4 * task + 4]),
                own_classes=(2 * task, 2 * task + 1),
                new_from=2 * (after - 1),
            )
            for task in range(after)
        ]
        top = {key: torch.cat([row[key] for row in rows]).numpy() for key in rows[0]}
        others = {key: value for key, value in arrays.items() if key != "logits"}
        changed[after] = {**others, **top}
    return changed


def usual_snapshots() -> dict[int, dict[str, Any]]:
    """PREDICTED, with logits that say the same."""
    return {
        after: {
            "logits": logits_for(predicted, 2 * after),
            "predicted": numpy.array(predicted, numpy.uint16),
        }
        for after, predicted in PREDICTED.items()
    }


def usual_run(path: Path, **changes: Any) -> Run:
    return load_runs(write_run(path, snapshots=usual_snapshots(), **changes))[0]


def expert_snapshots() -> dict[int, dict[str, Any]]:
    """One block of one head, four experts, two chosen. Task 1 uses experts 0 and 1; task 2 uses 1
    and 2. After task 2 one image of task 1 (the last, forgotten) has gone from {0, 1} to {1, 2};
    expert 0's key has doubled, the others' are as they were, and all values have grown by a half.
    Expert 3 is never chosen.
    """
    snapshots = usual_snapshots()
    keys = numpy.ones((1, 4, 2), numpy.float32)
    moved = keys.copy()
    moved[0, 0] *= 2
    own, other = [[[0, 1]]], [[[1, 2]]]
    snapshots[1] |= {
        "experts.0": numpy.array([own] * 4, numpy.uint8)[:, 0],
        "keys.0": keys,
        "values.0": keys,
        "counts.0": numpy.array([[8, 8, 0, 0]]),
    }
    snapshots[2] |= {
        "experts.0": numpy.array([own] * 3 + [other] * 5, numpy.uint8)[:, 0],
        "keys.0": moved,
        "values.0": 1.5 * keys,
        "counts.0": numpy.array([[8, 16, 8, 0]]),
    }
    return snapshots


def expert_run(path: Path, **changes: Any) -> Run:
    return load_runs(write_run(path, snapshots=expert_snapshots(), **changes))[0]
