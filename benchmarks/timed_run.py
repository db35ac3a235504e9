"""A whole training run, its seconds by part, and what a run of full size would take at that pace.

    python benchmarks/timed_run.py FOLDER key=value ...  # smope train; after each task parts.json

training:    a task's steps, waiting for their images among it.
usage:       what a method does after a task's last step: SMoPE counts what its experts are used.
statistics:  means and variances of the classes' features.
alignment:   the classifier alone, on features drawn from them.
evaluation:  the test images of all tasks so far.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from smope import train
from smope.methods.base import TaskSpan
from smope.training import task_end
from smope.training.trainer import Trainer

FULL = {
    "tasks": 10,
    "classes": 10,
    "train": 5000,
    "test": 1000,
    "epochs": 20,
    "dense_epochs": 10,
    "batch_size": 128,
}
"""CIFAR-100 as the paper trains on it; train and test images are those of a task."""


def follow(file: Path) -> None:
    """Have every trainer of this process write its seconds by part into `file` after each task."""
    seconds: Counter[str] = Counter()
    work: Counter[str] = Counter()
    began = time.perf_counter()
    learn, evaluate = Trainer._learn, _timed(Trainer._evaluate, "evaluation", seconds)

    def learn_and_note_start(self: Trainer, span: TaskSpan) -> None:
        if not work:
            seconds["start"] = time.perf_counter() - began
        learn(self, span)

    def evaluate_and_write(self: Trainer, span: TaskSpan) -> None:
        evaluate(self, span)
        work.update(_work(self, span))
        content = {
            "tasks": len(self.spans),
            "seconds": parts(seconds, self.history.seconds["wait"]),
            "whole": time.perf_counter() - began,
            "work": dict(work),
        }
        part = file.with_suffix(".part")
        part.write_text(json.dumps(content))
        part.replace(file)

    Trainer._learn = _timed(learn_and_note_start, "training", seconds)
    Trainer._end_task = _timed(Trainer._end_task, "after training", seconds)
    Trainer._evaluate = evaluate_and_write
    for name, part in (
        ("record_class_statistics", "statistics"),
        ("align_classifier", "alignment"),
    ):
        setattr(task_end, name, _timed(getattr(task_end, name), part, seconds))


def _timed(run: Callable[..., Any], name: str, seconds: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(run)
    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return run(*arguments, **named)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name] += time.perf_counter() - start

    return timed


def _work(trainer: Trainer, span: TaskSpan) -> dict[str, int]:
    """What a task took, counted in the units that its parts take time for."""
    settings = trainer.settings
    phases = trainer.steps_of_phases(span)
    return {
        "tasks_done": 1,
        "steps": sum(steps for _, steps in phases),
        "epochs": sum(phase.epochs for phase, _ in phases),
        "train_images": len(trainer.stream.tasks[span.index].train),
        "alignment_batches": span.start * settings.alignment_epochs,
        "test_images": sum(len(seen.test) for seen in trainer.stream.tasks[: span.index + 1]),
    }


def parts(seconds: dict[str, float], waiting: float) -> dict[str, float]:
    """The parts named at the head of this file, and the run's start and its waiting."""
    found = {
        name: seconds.get(name, 0.0)
        for name in ("start", "training", "statistics", "alignment", "evaluation")
    }
    usage = seconds.get("after training", 0.0) - found["statistics"] - found["alignment"]
    return {**found, "waiting": waiting, "usage": usage}


def full_work(alignment_epochs: int = 50) -> dict[str, int]:
    """The same counts for a run of FULL."""
    tasks, steps = FULL["tasks"], FULL["train"] // FULL["batch_size"]
    epochs = tasks * FULL["epochs"] + FULL["dense_epochs"]
    return {
        "steps": epochs * steps,
        "epochs": epochs,
        "train_images": tasks * FULL["train"],
        "alignment_batches": sum(
            FULL["classes"] * task * alignment_epochs for task in range(tasks)
        ),
        "test_images": FULL["test"] * tasks * (tasks + 1) // 2,
    }


def projection(seconds: dict[str, float], work: dict[str, int]) -> dict[str, float | None]:
    """Seconds of FULL by part, were each unit of work to take what it took here; no measurement.

    Args:
        seconds: By part, of a run.
        work: What that run did; a part that it had no work for comes out as None.
    """
    goal = full_work()
    units = {
        "computing": (seconds["training"] - seconds["waiting"], "steps"),
        "waiting": (seconds["waiting"], "epochs"),  # most of it is an epoch's start
        "usage": (seconds["usage"], "train_images"),
        "statistics": (seconds["statistics"], "train_images"),
        "alignment": (seconds["alignment"], "alignment_batches"),
        "evaluation": (seconds["evaluation"], "test_images"),
    }
    found: dict[str, float | None] = {
        part: taken * goal[unit] / work[unit] if work[unit] else None
        for part, (taken, unit) in units.items()
    }
    values = [value for value in found.values() if value is not None]
    return {**found, "whole": sum(values) if len(values) == len(found) else None}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    follow(folder / "parts.json")
    train(*sys.argv[2:], f"run_dir={folder / 'run'}")


if __name__ == "__main__":
    main()
