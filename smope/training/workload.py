"""What a run will compute, counted on its objects without training: steps, images, operations and
memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from smope.methods.base import Method, Phase, TaskSpan
from smope.metrics.cost import count_flops, count_phases, saved_bytes, step_state_bytes
from smope.training.disk import disk_bytes, growth_bytes
from smope.training.frozen_work import FrozenWork, count_frozen_work
from smope.training.passes import Passes, count_passes
from smope.training.precision import autocast
from smope.training.settings import TrainerSettings
from smope.training.trainer import Trainer

Kind = Literal["first task", "later tasks"]


@dataclass(frozen=True)
class PhaseWork:
    """One phase of the first task, or of all later tasks together.

    Attributes:
        tasks: which tasks.
        name: of the phase.
        steps: training steps over all these tasks.
        gflops: of one image.
    """

    tasks: Kind
    name: str
    steps: int
    gflops: float


@dataclass(frozen=True)
class Workload:
    """A run in numbers of images and operations.

    Attributes:
        batch: images of a training step.
        phases: training, phase by phase.
        train_images: training images of all tasks.
        statistics: passes over each task's images that record class statistics.
        evaluated: test images that pass through the network over the run; those of earlier
            tasks count again after each task until their features are final.
        passes: the same images and those of passes after training, by their operations.
        alignment_steps: training steps of the classifier on drawn features.
        infer_gflops: of one image that is classified.
        memory: bytes of weights, gradients and optimizer, and of the activations that a step keeps
            for its backward pass.
        disk: bytes that the run writes; see training/disk.py.
        alignment_gflops: of the matrix products of all steps of the classifier.
        frozen: passes through the frozen backbone that steps and evaluations do not repeat.
        frozen_gflops: of one of them.
    """

    batch: int
    phases: tuple[PhaseWork, ...]
    train_images: int
    statistics: int
    evaluated: int
    alignment_steps: int
    infer_gflops: float
    memory: dict[str, int]
    passes: Passes
    disk: dict[str, int] = field(default_factory=dict)
    alignment_gflops: float = 0.0
    frozen: FrozenWork = field(default_factory=FrozenWork)
    frozen_gflops: float = 0.0

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def train_gflops(self) -> float:
        """GFLOPs of all training steps."""
        stepped = self.batch * sum(phase.steps * phase.gflops for phase in self.phases)
        return stepped - self.frozen.in_training * self.frozen_gflops

    @property
    def eval_gflops(self) -> float:
        """GFLOPs of all evaluations."""
        repeated = self.frozen.in_evaluation * self.frozen_gflops
        return self.passes.evaluated * self.infer_gflops - repeated


def count(trainer: Trainer) -> Workload:
    """The workload of a trainer's run. Its method keeps its state, but not its gradients."""
    method, settings, tasks = trainer.method, trainer.settings, trainer.stream.tasks
    aligned = len(method.aligned())
    flops = count_flops(method, trainer.spans[0])
    infer_gflops = flops["infer_gflops"]["torch"]
    return Workload(
        batch=settings.batch_size,
        phases=tuple(count_training(trainer)),
        train_images=sum(len(task.train) for task in tasks),
        statistics=len(method.recorded()),
        evaluated=sum(trainer.test_passes(span) for span in trainer.spans),
        alignment_steps=aligned
        * sum(alignment_steps(span, settings) for span in trainer.spans[1:]),
        infer_gflops=infer_gflops,
        memory=_memory(trainer),
        passes=count_passes(trainer, infer_gflops),
        disk=disk_bytes(trainer),
        alignment_gflops=aligned
        * sum(alignment_gflops(span, settings, method) for span in trainer.spans[1:]),
        frozen=count_frozen_work(trainer),
        frozen_gflops=infer_gflops - flops["beyond_plain"]["torch"],
    )


def count_training(trainer: Trainer) -> list[PhaseWork]:
    """Each phase of the first task, then each of the later ones together."""
    work: list[PhaseWork] = []
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
            steps = sum(of_task[number][1] for of_task in phases)
            work.append(PhaseWork(kind, phase.name, steps, gflops[number]["torch"]))
    return work


def alignment_steps(span: TaskSpan, settings: TrainerSettings) -> int:
    """Training steps of aligning one classifier; see training/alignment.py.

    Args:
        span: the task that was learned last.
        settings: the keys alignment_* of the `trainer` group.

    Returns:
        The number of steps.
    """
    batches = span.start if settings.alignment_batches == "old_classes" else span.stop
    return settings.alignment_epochs * batches


def alignment_gflops(span: TaskSpan, settings: TrainerSettings, method: Method) -> float:
    """Operations of aligning one classifier: a step has three products of its features with the
    weights of the classes so far, forward and backward.

    Args:
        span: the task that was learned last.
        settings: the keys alignment_* of the `trainer` group.
        method: the width of its features.

    Returns:
        10^9 operations.
    """
    batch, width = settings.alignment_samples_per_class, method.backbone.embed_dim
    return 3 * 2 * alignment_steps(span, settings) * batch * width * span.stop / 1e9


def _memory(trainer: Trainer) -> dict[str, int]:
    """Bytes of a training step, the largest over the phases of the first task; the method's state
    is as large as after the last one.
    """
    state = step_state_bytes(trainer.method)
    state["weights"] += growth_bytes(trainer)
    phases = [phase for phase, _ in trainer.steps_of_phases(trainer.spans[0])]
    activations = [activation_bytes(trainer, trainer.spans[0], phase) for phase in phases]
    return {**state, "activations": max(activations, default=0)}


def activation_bytes(trainer: Trainer, span: TaskSpan, phase: Phase) -> int:
    """Bytes kept for the backward pass of a whole batch.

    Counted for two and for three images; each further image is taken to add the difference.

    Args:
        trainer: of the run.
        span: the task.
        phase: one of its phases.

    Returns:
        The number of bytes.
    """
    two, three = (_saved_by_step(trainer, span, phase, images) for images in (2, 3))
    return max(two + (trainer.settings.batch_size - 2) * (three - two), 0)


def _saved_by_step(trainer: Trainer, span: TaskSpan, phase: Phase, images: int) -> int:
    method, device = trainer.method, trainer.device
    size = method.backbone.image_size
    pixels = torch.zeros(images, 3, size, size, device=device, dtype=trainer.dtype)
    labels = torch.full((images,), span.classes[0], device=device)
    was_training = method.training
    method.begin_phase(phase)
    method.train()

    def step() -> Any:
        with autocast(trainer.settings.precision, device):
            return torch.stack(list(method.losses(pixels, labels, span).values())).sum()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        saved = saved_bytes(step, method)
    method.train(was_training)
    return saved
