"""Classifier alignment: training the classifier alone on features drawn from class statistics.

The paper calls it task-adaptive prediction, after HiDe-Prompt (Wang et al. 2023, arXiv 2310.07234).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.methods._shared.class_statistics import drawn
from smope.methods.base import AlignableClassifier, TaskSpan
from smope.training.phase import make_optimizer
from smope.training.schedule import alignment_cosine
from smope.training.settings import TrainerSettings

WEIGHT_DECAY = 5e-4
T = TypeVar("T")


def align_classifier(
    method: AlignableClassifier, task: TaskSpan, settings: TrainerSettings, seed: int
) -> None:
    """Train the classifier so that all classes seen so far compete.

    Each epoch draws `alignment_samples_per_class` features of every seen class, shuffles them, and
    takes batches of that many features. With `alignment_batches` "old_classes" (the authors' code)
    it takes as many batches as there are old classes, with "all" it takes them all. The optimizer
    is AdamW with weight decay 5e-4; training/schedule.py has the rate.

    Args:
        method: a classifier with class statistics; its other parameters stay as they are.
        task: the task that was learned last.
        settings: the keys alignment_* of the `trainer` group.
        seed: fixes every draw.
    """
    batch_size = settings.alignment_samples_per_class
    groups = [
        {"params": list(method.classifier.parameters()), "lr": settings.alignment_learning_rate}
    ]
    optimizer = make_optimizer(groups, WEIGHT_DECAY)
    labels, mean, deviation = method.statistics.gaussians()
    labels = labels.repeat_interleave(batch_size)
    draws = _Draws(mean, batch_size, seed)
    batches = task.start if settings.alignment_batches == "old_classes" else len(mean)
    for epoch, (noise, order) in enumerate(_ahead(draws, settings.alignment_epochs)):
        chosen = order[: batches * batch_size].to(mean.device, non_blocking=True)
        features = drawn(mean, deviation, noise.to(mean, non_blocking=True))
        shuffled = zip(
            features.flatten(0, 1)[chosen].split(batch_size),
            labels[chosen].split(batch_size),
            strict=True,
        )
        for index, (batch_features, batch_labels) in enumerate(shuffled):
            optimizer.param_groups[0]["lr"] = alignment_cosine(
                settings.alignment_learning_rate,
                epoch * batches + index,
                batches * settings.alignment_epochs,
                settings.schedule_lag,
            )
            logits = method.classify(batch_features)[:, : task.stop]
            loss = F.cross_entropy(logits, batch_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class _Draws:
    """The random numbers of one epoch after another, drawn on the CPU so that they are the same for
    every device.

    A call gives normal numbers (n, rows, C) for n Gaussians of mean (n, C), and an order of the n ·
    rows features.
    """

    def __init__(self, mean: Tensor, rows: int, seed: int) -> None:
        self._shape = (len(mean), rows, mean.shape[-1])
        self._generator = torch.Generator().manual_seed(seed)
        self._pinned = mean.device.type == "cuda"

    def __call__(self) -> tuple[Tensor, Tensor]:
        noise = torch.randn(self._shape, generator=self._generator)
        order = torch.randperm(self._shape[0] * self._shape[1], generator=self._generator)
        return (noise.pin_memory(), order.pin_memory()) if self._pinned else (noise, order)


def _ahead(draw: Callable[[], T], times: int) -> Iterator[T]:
    """What `times` calls of `draw` give, each call made while the result of the one before is in
    use.
    """
    if times == 0:
        return
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(draw)
        for number in range(1, times + 1):
            drawn = coming.result()
            if number < times:
                coming = thread.submit(draw)
            yield drawn
