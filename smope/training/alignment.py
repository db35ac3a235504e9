"""Classifier alignment: training the classifier alone on features drawn from class statistics.

The paper calls it task-adaptive prediction, after HiDe-Prompt (Wang et al. 2023, arXiv 2310.07234).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from smope.methods.base import AlignableClassifier, TaskSpan
from smope.training.phase import make_optimizer
from smope.training.schedule import alignment_cosine
from smope.training.settings import TrainerSettings

WEIGHT_DECAY = 5e-4


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
    generator = torch.Generator().manual_seed(seed)
    gaussians = int(method.statistics.known.sum())
    batches = task.start if settings.alignment_batches == "old_classes" else gaussians
    for epoch in range(settings.alignment_epochs):
        features, labels = method.statistics.sample(batch_size, generator)
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for index, chosen in enumerate(order.split(batch_size)[:batches]):
            optimizer.param_groups[0]["lr"] = alignment_cosine(
                settings.alignment_learning_rate,
                epoch * batches + index,
                batches * settings.alignment_epochs,
                settings.schedule_lag,
            )
            logits = method.classify(features[chosen])[:, : task.stop]
            loss = F.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
