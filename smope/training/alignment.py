"""Classifier alignment: retraining the classifier alone on features drawn from remembered class
statistics.

The paper calls it task-adaptive prediction, after HiDe-Prompt (Wang et al. 2023, arXiv 2310.07234).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from smope.methods.base import Aligned, TaskSpan
from smope.training.phase import make_optimizer
from smope.training.schedule import alignment_cosine
from smope.training.settings import TrainerSettings

WEIGHT_DECAY = 5e-4


def align_classifier(method: Aligned, task: TaskSpan, settings: TrainerSettings, seed: int) -> None:
    """Train the classifier so that all classes seen so far compete.

    Each of `alignment_epochs` epochs draws `alignment_samples_per_class` features of every seen
    class, shuffles them, and takes batches of that many rows: as many as there are old classes (the
    authors' program), or all. AdamW with weight decay 5e-4, rate from training/schedule.py. `seed`
    fixes every draw.
    """
    rows = settings.alignment_samples_per_class
    groups = [
        {"params": list(method.classifier.parameters()), "lr": settings.alignment_learning_rate}
    ]
    optimizer = make_optimizer(groups, WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    gaussians = int(method.statistics.known.sum())
    batches = task.start if settings.alignment_batches == "old_classes" else gaussians
    for epoch in range(settings.alignment_epochs):
        features, labels = method.statistics.sample(rows, generator)
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for index, chosen in enumerate(order.split(rows)[:batches]):
            step = epoch * batches + index
            rate = alignment_cosine(
                settings.alignment_learning_rate,
                step,
                batches * settings.alignment_epochs,
                settings.schedule_lag,
            )
            optimizer.param_groups[0]["lr"] = rate
            loss = F.cross_entropy(
                method.classify(features[chosen])[:, : task.stop], labels[chosen]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
