"""A loop as somebody else would write it, fed with the batches and rates of `smope train`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from smope.loops.learner import Learner
from smope.seeding import stable_seed
from smope.streams.stream import Stream, Task
from smope.training.loading import shuffled_batches
from smope.training.randomness import seed_generators
from smope.training.schedule import make_schedule
from smope.training.settings import TrainerSettings

Batch = tuple[Tensor, Tensor]


def batches(images: object, chosen: list[list[int]]) -> list[Batch]:
    """Images of a task as pairs of tensors."""
    return [
        (torch.stack([images[i][0] for i in rows]), torch.tensor([images[i][1] for i in rows]))
        for rows in chosen
    ]


class Epochs:
    """A training loader of one task: another order in each pass, as the trainer draws it."""

    def __init__(self, task: Task, settings: TrainerSettings, seed: int = 0) -> None:
        self.task, self.settings, self.seed, self.epoch = task, settings, seed, 0

    def __iter__(self) -> Iterator[Batch]:
        seed = stable_seed(self.seed, "order", self.task.index, self.epoch)
        self.epoch += 1
        images, size = self.task.train, self.settings.batch_size
        yield from batches(images, shuffled_batches(len(images), size, seed))


def in_order(images: object, size: int) -> list[Batch]:
    """Every image once."""
    rows = [*range(len(images))]
    return batches(images, [rows[i : i + size] for i in range(0, len(rows), size)])


def train_plainly(
    learner: Learner, stream: Stream, settings: TrainerSettings, seed: int = 0
) -> list[list[float]]:
    """Train on all tasks of a stream; the accuracy matrix."""
    matrix = []
    for task in stream.tasks:
        seed_generators(stable_seed(seed, "task", task.index))
        loader = Epochs(task, settings, seed)
        learner.begin_task(task.classes, in_order(task.train_plain, settings.eval_batch_size))
        for phase in learner.phases(settings.epochs, settings.dense_epochs):
            groups = learner.parameter_groups(settings.learning_rate)
            bases = [group["lr"] for group in groups]
            optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
            steps = len(task.train) // settings.batch_size
            rate = make_schedule(settings, phase.schedule_epochs, steps)
            step = phase.start * steps
            for _ in learner.epochs():
                for images, labels in loader:
                    for group, base in zip(optimizer.param_groups, bases, strict=True):
                        group["lr"] = rate(base, step, step // steps)
                    optimizer.zero_grad()
                    learner.loss(images, labels).backward()
                    optimizer.step()
                    step += 1
        learner.end_task(
            loader,
            in_order(task.train_plain, settings.eval_batch_size),
            alignment_epochs=settings.alignment_epochs,
            alignment_samples_per_class=settings.alignment_samples_per_class,
            alignment_learning_rate=settings.alignment_learning_rate,
        )
        matrix.append([accuracy(learner, other) for other in stream.tasks[: task.index + 1]])
    return matrix


def accuracy(learner: Learner, task: Task) -> float:
    """On the test images of a task."""
    [(images, labels)] = in_order(task.test, len(task.test))
    return (learner.predict(images) == labels).double().mean().item()
