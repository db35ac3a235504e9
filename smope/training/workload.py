"""What a run computes, counted on its real objects without training: steps, images, operations,
memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from smope.methods.base import Phase, TaskSpan
from smope.metrics.cost import count_flops, count_phases, saved_bytes, step_state_bytes
from smope.training.precision import autocast
from smope.training.settings import TrainerSettings
from smope.training.trainer import Trainer

Kind = Literal["first task", "later tasks"]


@dataclass(frozen=True)
class PhaseWork:
    """One phase of the first task, or of all later ones: its steps over all of them, GFLOPs of an
    image.
    """

    tasks: Kind
    name: str
    steps: int
    gflops: float


@dataclass(frozen=True)
class Workload:
    """A run in numbers of images and operations.

    batch:            images of a training step.
    train_images:     of all tasks, each once: what a pass after a task goes over.
    statistics:       passes over a task's images that record class statistics.
    evaluated:        test images classified over the run, those of earlier tasks again after each
                      task.
    alignment_steps:  of the classifier on drawn features.
    memory:           bytes: weights, gradients, optimizer, and activations that a step keeps for
                      its backward pass.
    """

    batch: int
    phases: tuple[PhaseWork, ...]
    train_images: int
    statistics: int
    evaluated: int
    alignment_steps: int
    infer_gflops: float
    memory: dict[str, int]

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def train_gflops(self) -> float:
        """Of all training steps."""
        return self.batch * sum(phase.steps * phase.gflops for phase in self.phases)


def count(trainer: Trainer) -> Workload:
    """The workload of `trainer`'s run.

    Its method is left as it was, but for what backward passes leave.
    """
    method, settings, tasks = trainer.method, trainer.settings, trainer.stream.tasks
    evaluated = sum(len(task.test) for span in trainer.spans for task in tasks[: span.index + 1])
    if settings.record == "all":
        evaluated = len(tasks) * sum(len(task.test) for task in tasks)
    aligned = len(method.aligned())
    return Workload(
        batch=settings.batch_size,
        phases=tuple(count_training(trainer)),
        train_images=sum(len(task.train) for task in tasks),
        statistics=len(method.recorded()),
        evaluated=evaluated,
        alignment_steps=aligned
        * sum(alignment_steps(span, settings) for span in trainer.spans[1:]),
        infer_gflops=count_flops(method, trainer.spans[0])["infer_gflops"]["torch"],
        memory=_memory(trainer),
    )


def count_training(trainer: Trainer) -> list[PhaseWork]:
    """Each phase of the first task, then each of the later ones together."""
    found: list[PhaseWork] = []
    groups: tuple[tuple[Kind, list[TaskSpan]], ...] = (
        ("first task", trainer.spans[:1]),
        ("later tasks", trainer.spans[1:]),
    )
    for kind, spans in groups:
        if not spans:
            continue
        phases = [trainer.steps_of_phases(span) for span in spans]
        gflops = count_phases(trainer.method, spans[0], [phase for phase, _ in phases[0]])
        for number, (phase, _) in enumerate(phases[0]):
            steps = sum(one[number][1] for one in phases)
            found.append(PhaseWork(kind, phase.name, steps, gflops[number]["torch"]))
    return found


def alignment_steps(span: TaskSpan, settings: TrainerSettings) -> int:
    """Steps of aligning one classifier after a task: see training/alignment.py."""
    batches = span.start if settings.alignment_batches == "old_classes" else span.stop
    return settings.alignment_epochs * batches


def _memory(trainer: Trainer) -> dict[str, int]:
    """Bytes of a training step, the largest over the phases of the first task."""
    state = step_state_bytes(trainer.method)
    phases = [phase for phase, _ in trainer.steps_of_phases(trainer.spans[0])]
    kept = [activation_bytes(trainer, trainer.spans[0], phase) for phase in phases]
    return {**state, "activations": max(kept, default=0)}


def activation_bytes(trainer: Trainer, span: TaskSpan, phase: Phase) -> int:
    """Bytes kept for the backward pass of a whole batch: counted for two and three images, the
    rest is proportional.
    """
    two, three = (_kept(trainer, span, phase, images) for images in (2, 3))
    return max(two + (trainer.settings.batch_size - 2) * (three - two), 0)


def _kept(trainer: Trainer, span: TaskSpan, phase: Phase, images: int) -> int:
    method, device = trainer.method, trainer.device
    size = method.backbone.image_size
    pixels = torch.zeros(images, 3, size, size, device=device, dtype=trainer.dtype)
    labels = torch.full((images,), span.classes[0], device=device)
    was = method.training
    method.begin_phase(phase)
    method.train()

    def step() -> Any:
        with autocast(trainer.settings.precision, device):
            return torch.stack(list(method.losses(pixels, labels, span).values())).sum()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        kept = saved_bytes(step, method)
    method.train(was)
    return kept
