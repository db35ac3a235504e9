"""Seconds of a training step, of a pass over images and of aligning the classifier, measured here
on the real ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Phase, TaskSpan
from smope.streams.stream import TaskImages
from smope.training.alignment import align_classifier
from smope.training.loading import choose_workers, ordered_batches, load, shuffled_batches
from smope.training.phase import RunningPhase
from smope.training.precision import autocast
from smope.training.trainer import Trainer
from smope.training.workload import Kind, Workload, alignment_steps

LONGEST = 5.0  # seconds of a step; fewer images are measured where a whole batch would take longer
ROOM = 0.5  # of the memory that is free, for what a step keeps
SECONDS = 2.0  # for each thing that is measured, unless a single step takes longer
FEWEST, MOST = 3, 30  # steps
CALIBRATION = 3  # epochs of alignment


@dataclass(frozen=True)
class Timed:
    """Seconds of one step of a phase, its images read from their source: median, fastest and
    slowest of `steps`.
    """

    tasks: Kind
    name: str
    seconds: float
    low: float
    high: float
    steps: int

    def times(self, factor: float) -> Timed:
        """For so many times as many images."""
        scaled = {name: factor * getattr(self, name) for name in ("seconds", "low", "high")}
        return replace(self, **scaled)


@dataclass(frozen=True)
class Measured:
    """phases: a step of each. pass_seconds, eval_seconds: an image in a pass over training images,
    and classified.
    passes: over a task's images in the method's own end_task; end_seconds: what that takes beside
    them. alignment_step: seconds, None where nothing is aligned. assumed: what could not be
    measured, in words.
    """

    device: str
    threads: int
    phases: tuple[Timed, ...]
    pass_seconds: float
    eval_seconds: float
    passes: int
    end_seconds: float
    alignment_step: float | None
    assumed: tuple[str, ...]


def measure(trainer: Trainer, work: Workload) -> Measured:
    """A few steps of each phase of the first and the second task, and what comes after a task.

    The trainer is used up by it: its method has learned nonsense.
    """
    first, *later = trainer.spans
    share, said = _whole_or_less(trainer, work)
    phases = _steps_of(trainer, first, "first task")
    trainer.method.eval()
    task = trainer.stream.tasks[0]
    pass_seconds = _pass(
        trainer, task.train, lambda images: trainer.method.task_features(images, first)
    )
    eval_seconds = _pass(
        trainer, task.test, lambda images: trainer.method.classify(trainer.method.features(images))
    )
    passes, end_seconds, assumed = _end_of_task(trainer, first)
    if later:
        phases += _steps_of(trainer, later[0], "later tasks")
    return Measured(
        device=torch.cuda.get_device_name(trainer.device)
        if trainer.device.type == "cuda"
        else str(trainer.device),
        threads=torch.get_num_threads(),
        phases=tuple(timed.times(share) for timed in phases),
        pass_seconds=pass_seconds,
        eval_seconds=eval_seconds,
        passes=passes,
        end_seconds=end_seconds,
        alignment_step=_alignment_step(trainer, later[0]) if later else None,
        assumed=(*said, *assumed),
    )


def _whole_or_less(trainer: Trainer, work: Workload) -> tuple[float, list[str]]:
    """Have `trainer` take smaller batches where a whole one needs too much memory or time; by what
    factor fewer images.

    A training step is taken to last as long as three passes.
    """
    settings = trainer.settings
    few = trainer.stream.tasks[0].test
    trainer.settings = replace(settings, eval_batch_size=min(4, settings.eval_batch_size))
    image = _pass(trainer, few, trainer.method.features, seconds=0.2)
    fit = ROOM * _free_memory(trainer) / max(1, work.memory["activations"])
    share = min(1.0, fit, LONGEST / (3 * image * settings.batch_size))
    batch = max(2, int(share * settings.batch_size)) if share < 1 else settings.batch_size
    batch = min(batch, settings.batch_size)
    most = max(1, int(LONGEST / image))
    trainer.settings = replace(
        settings, batch_size=batch, eval_batch_size=min(most, settings.eval_batch_size)
    )
    if batch == settings.batch_size:
        return 1.0, []
    said = f"steps of {batch} images were measured instead of {settings.batch_size} (memory or time), and scaled"
    return settings.batch_size / batch, [said]


def _free_memory(trainer: Trainer) -> float:
    """Bytes; infinite where the system does not say."""
    if trainer.device.type == "cuda":
        return torch.cuda.mem_get_info(trainer.device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _steps_of(trainer: Trainer, span: TaskSpan, kind: Kind) -> list[Timed]:
    trainer.method.begin_task(span)
    return [_timed_phase(trainer, span, phase, kind) for phase, _ in trainer.steps_of_phases(span)]


def _timed_phase(trainer: Trainer, span: TaskSpan, phase: Phase, kind: Kind) -> Timed:
    """Steps as the trainer takes them; the first warms up and does not count, unless it alone
    takes all the time.
    """
    method, task = trainer.method, trainer.stream.tasks[span.index]
    method.begin_phase(phase)
    method.train()
    steps = len(task.train) // trainer.settings.batch_size
    running = RunningPhase(
        method, span, phase, trainer.settings, trainer.device, first=0, steps=steps
    )
    found: list[float] = []
    batches = _batches_without_end(trainer, task.train, shuffle=True)
    begun = _now(trainer)
    while len(found) <= MOST:
        started = _now(trainer)
        running.done = 0  # the schedule's first step, over and over
        running.step(*next(batches))
        found.append(_now(trainer) - started)
        if _now(trainer) - begun > SECONDS and (len(found) > FEWEST or found[0] > SECONDS):
            break
    counted = found[1:] or found
    return Timed(kind, phase.name, median(counted), min(counted), max(counted), len(counted))


def _batches_without_end(
    trainer: Trainer, images: TaskImages, *, shuffle: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    workers = choose_workers(trainer.settings.num_workers, images, trainer.device)
    settings, epoch = trainer.settings, 0
    while True:
        images.set_epoch(epoch)
        if shuffle:
            batches = shuffled_batches(len(images), settings.batch_size, epoch)
        else:
            batches = ordered_batches(len(images), settings.eval_batch_size)
        yield from load(images, batches, trainer.device, trainer.dtype, workers)
        epoch += 1


def _pass(
    trainer: Trainer, images: TaskImages, run: Callable[[Tensor], Tensor], seconds: float = SECONDS
) -> float:
    """Seconds an image of a pass without gradients, the first batch apart if there is time for
    more.
    """
    found: list[tuple[float, int]] = []
    begun = _now(trainer)
    batches = _batches_without_end(trainer, images, shuffle=False)
    while (_now(trainer) - begun < seconds and len(found) <= MOST) or not found:
        started = _now(trainer)
        pixels, _ = next(batches)
        with torch.no_grad(), autocast(trainer.settings.precision, trainer.device):
            run(pixels)
        found.append((_now(trainer) - started, len(pixels)))
    counted = found[1:] or found
    return sum(took for took, _ in counted) / sum(count for _, count in counted)


def _end_of_task(trainer: Trainer, span: TaskSpan) -> tuple[int, float, list[str]]:
    """Passes that the method's end_task makes over its task's images, and what it takes beside
    them.

    It is shown a single batch instead of all images, labelled so that each class occurs if there
    are images enough.
    """
    calls, last = 0, _now(trainer)
    classes = torch.tensor(span.classes, device=trainer.device)

    def batches(kind: Literal["train", "plain"]) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal calls, last
        calls += 1
        task = trainer.stream.tasks[span.index]
        images = task.train if kind == "train" else task.train_plain
        pixels, _ = next(_batches_without_end(trainer, images, shuffle=kind == "train"))
        yield pixels, classes[torch.arange(len(pixels), device=trainer.device) % len(classes)]
        last = _now(trainer)

    trainer.method.eval()
    try:
        with torch.no_grad(), autocast(trainer.settings.precision, trainer.device):
            trainer.method.end_task(span, batches)
    except (RuntimeError, ValueError, UserError) as error:  # too few images to learn from
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            max(calls, 1),
            0.0,
            [f"what follows a task's last step could not be tried on one batch ({reason})"],
        )
    return calls, (_now(trainer) - last if calls else 0.0), []


def _alignment_step(trainer: Trainer, span: TaskSpan) -> float | None:
    """Seconds of one alignment step on made-up class statistics."""
    parts = trainer.method.aligned()
    if not parts or not trainer.settings.alignment_epochs:
        return None
    part = parts[-1]
    generator = torch.Generator().manual_seed(0)
    weight = part.classifier.weight
    assert isinstance(weight, Tensor)
    for label in range(span.stop):
        features = torch.randn(
            16 * part.statistics.mean.shape[1], weight.shape[1], generator=generator
        )
        part.statistics.record(label, features.to(weight), seed=0)
    settings = replace(
        trainer.settings, alignment_epochs=min(CALIBRATION, trainer.settings.alignment_epochs)
    )
    started = _now(trainer)
    trainer.method.train()
    align_classifier(part, span, settings, 0)
    return (_now(trainer) - started) / max(1, alignment_steps(span, settings))


def _now(trainer: Trainer) -> float:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter()
