"""Measures seconds of training steps, of passes over images and of alignment, on the run itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Phase, TaskSpan
from smope.training.alignment import align_classifier
from smope.training.device import free_memory
from smope.training.loading import ordered_batches, shuffled_batches
from smope.training.phase import RunningPhase
from smope.training.precision import autocast
from smope.training.trainer import Trainer
from smope.training.workload import Kind, Workload, alignment_steps

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages

LONGEST_STEP_SECONDS = 5.0  # smaller batches are measured if a step would take longer
FREE_MEMORY_SHARE = 0.5  # of free memory, for what a step keeps
MEASURING_SECONDS = 2.0  # for each measurement, unless a single step takes longer
FEWEST_STEPS, MOST_STEPS = 3, 30
MEASURED_ALIGNMENT_EPOCHS = 3


@dataclass(frozen=True)
class StepTiming:
    """Seconds of one training step, reading its images included.

    Attributes:
        tasks: which tasks.
        name: of the phase.
        seconds: the median.
        low: the fastest step.
        high: the slowest step.
        steps: how many were measured.
    """

    tasks: Kind
    name: str
    seconds: float
    low: float
    high: float
    steps: int

    def scaled(self, factor: float) -> StepTiming:
        """The same for a batch with `factor` times as many images."""
        return replace(
            self, seconds=factor * self.seconds, low=factor * self.low, high=factor * self.high
        )


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        device: where.
        threads: of torch.
        phases: a step of each phase.
        pass_seconds: an image in a pass over training images.
        eval_seconds: an image that is classified.
        end_seconds: what end_task takes in the first task beside its passes over images.
        later_end_seconds: the same in the second task.
        alignment_step: seconds; None if nothing is aligned.
        assumed: what could not be measured, in words.
    """

    device: str
    threads: int
    phases: tuple[StepTiming, ...]
    pass_seconds: float
    eval_seconds: float
    end_seconds: float
    later_end_seconds: float
    alignment_step: float | None
    assumed: tuple[str, ...]


def measure(trainer: Trainer, work: Workload) -> Measured:
    """Measure a few steps of each phase of the first two tasks, and what follows a task.

    Args:
        trainer: cannot be used afterwards, since its method is trained on a few images.
        work: what the run computes.

    Returns:
        The seconds.
    """
    first, *later = trainer.spans
    factor, notes = _reduce_batches(trainer, work)
    phases = _time_phases(trainer, first, "first task")
    trainer.method.eval().assume_learned()
    task = trainer.stream.tasks[0]
    pass_seconds = _pass(
        trainer, task.train, lambda images: trainer.method.task_features(images, first)
    )
    eval_seconds = _pass(
        trainer, task.test, lambda images: trainer.method.classify(trainer.method.features(images))
    )
    end_seconds, assumed = _end_of_task(trainer, first)
    later_end_seconds = 0.0
    if later:
        phases += _time_phases(trainer, later[0], "later tasks")
        later_end_seconds, more = _end_of_task(trainer, later[0])
        assumed = list(dict.fromkeys([*assumed, *more]))
    on_cuda = trainer.device.type == "cuda"
    return Measured(
        device=torch.cuda.get_device_name(trainer.device) if on_cuda else str(trainer.device),
        threads=torch.get_num_threads(),
        phases=tuple(timing.scaled(factor) for timing in phases),
        pass_seconds=pass_seconds,
        eval_seconds=eval_seconds,
        end_seconds=end_seconds,
        later_end_seconds=later_end_seconds,
        alignment_step=_alignment_step(trainer, later[0]) if later else None,
        assumed=(*notes, *assumed),
    )


def _reduce_batches(trainer: Trainer, work: Workload) -> tuple[float, list[str]]:
    """Let `trainer` take smaller batches if whole ones need too much memory or time.

    A training step is assumed to last as long as three passes. Returns by which factor batches are
    smaller, and a note about it.
    """
    settings = trainer.settings
    images = trainer.stream.tasks[0].test
    trainer.settings = replace(settings, eval_batch_size=min(4, settings.eval_batch_size))
    image_seconds = _pass(trainer, images, trainer.method.features, seconds=0.2)
    by_memory = FREE_MEMORY_SHARE * free_memory(trainer.device) / max(1, work.memory["activations"])
    by_time = LONGEST_STEP_SECONDS / (3 * image_seconds * settings.batch_size)
    share = min(1.0, by_memory, by_time)
    batch = settings.batch_size
    if share < 1:
        batch = min(max(2, int(share * batch)), batch)
    most = max(1, int(LONGEST_STEP_SECONDS / image_seconds))
    trainer.settings = replace(
        settings, batch_size=batch, eval_batch_size=min(most, settings.eval_batch_size)
    )
    if batch == settings.batch_size:
        return 1.0, []
    note = (
        f"steps of {batch} images were measured instead of {settings.batch_size} (memory or "
        f"time), and scaled"
    )
    return settings.batch_size / batch, [note]


def _time_phases(trainer: Trainer, span: TaskSpan, kind: Kind) -> list[StepTiming]:
    trainer.method.begin_task(span)
    return [_time_phase(trainer, span, phase, kind) for phase, _ in trainer.steps_of_phases(span)]


def _time_phase(trainer: Trainer, span: TaskSpan, phase: Phase, kind: Kind) -> StepTiming:
    """Take steps as the trainer does. The first one warms up and does not count, unless it takes
    all the time by itself.
    """
    method, task = trainer.method, trainer.stream.tasks[span.index]
    method.begin_phase(phase)
    method.train()
    steps = len(task.train) // trainer.settings.batch_size
    running = RunningPhase(
        method, span, phase, trainer.settings, trainer.device, first=0, steps=steps
    )
    seconds: list[float] = []
    batches = _endless_batches(trainer, task.train, shuffle=True)
    begun = _now(trainer)
    while len(seconds) <= MOST_STEPS:
        started = _now(trainer)
        running.done = 0  # always at the first step of the schedule
        running.step(*next(batches))
        seconds.append(_now(trainer) - started)
        enough = len(seconds) > FEWEST_STEPS or seconds[0] > MEASURING_SECONDS
        if enough and _now(trainer) - begun > MEASURING_SECONDS:
            break
    counted = seconds[1:] or seconds
    return StepTiming(kind, phase.name, median(counted), min(counted), max(counted), len(counted))


def _endless_batches(
    trainer: Trainer, images: TaskImages, *, shuffle: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    settings, epoch = trainer.settings, 0
    while True:
        images.set_epoch(epoch)
        if shuffle:
            batches = shuffled_batches(len(images), settings.batch_size, epoch)
        else:
            batches = ordered_batches(len(images), settings.eval_batch_size)
        yield from trainer.loader.read(images, batches)
        epoch += 1


def _pass(
    trainer: Trainer,
    images: TaskImages,
    run: Callable[[Tensor], Tensor],
    seconds: float | None = None,
) -> float:
    """Seconds an image of a pass without gradients. The first batch does not count, if there is
    time for more.
    """
    limit = MEASURING_SECONDS if seconds is None else seconds
    timings: list[tuple[float, int]] = []
    begun = _now(trainer)
    batches = _endless_batches(trainer, images, shuffle=False)
    while (_now(trainer) - begun < limit and len(timings) <= MOST_STEPS) or not timings:
        started = _now(trainer)
        pixels, _ = next(batches)
        with torch.no_grad(), autocast(trainer.settings.precision, trainer.device):
            run(pixels)
        timings.append((_now(trainer) - started, len(pixels)))
    counted = timings[1:] or timings
    return sum(taken for taken, _ in counted) / sum(count for _, count in counted)


def _end_of_task(trainer: Trainer, span: TaskSpan) -> tuple[float, list[str]]:
    """Seconds of end_task beside its passes over the images of its task, and notes.

    It and prepare_task get a single batch instead of all images, labelled so that each class occurs
    if there are enough images.
    """
    last = _now(trainer)
    classes = torch.tensor(span.classes, device=trainer.device)

    def batches(kind: Literal["train", "plain"]) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal last
        task = trainer.stream.tasks[span.index]
        images = task.train if kind == "train" else task.train_plain
        pixels, _ = next(_endless_batches(trainer, images, shuffle=kind == "train"))
        yield pixels, classes[torch.arange(len(pixels), device=trainer.device) % len(classes)]
        last = _now(trainer)

    trainer.method.eval()
    try:
        with torch.no_grad(), autocast(trainer.settings.precision, trainer.device):
            if trainer.method.prepares:
                trainer.method.prepare_task(span, batches)
            last = _now(trainer)
            trainer.method.end_task(span, batches)
    except (RuntimeError, ValueError, UserError) as error:  # too few images to learn from
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        note = f"what follows a task's last step could not be tried on one batch ({reason})"
        return 0.0, [note]
    return _now(trainer) - last, []


def _alignment_step(trainer: Trainer, span: TaskSpan) -> float | None:
    """Seconds of one alignment step on random class statistics; None if nothing is aligned."""
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
    epochs = min(MEASURED_ALIGNMENT_EPOCHS, trainer.settings.alignment_epochs)
    settings = replace(trainer.settings, alignment_epochs=epochs)
    started = _now(trainer)
    trainer.method.train()
    align_classifier(part, span, settings, 0)
    return (_now(trainer) - started) / max(1, alignment_steps(span, settings))


def _now(trainer: Trainer) -> float:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter()
