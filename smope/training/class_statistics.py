"""Recording the class statistics that alignment draws features from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from smope.distributed import collectives
from smope.methods.base import AlignableClassifier, TaskSpan
from smope.training.precision import autocast, full_precision


def record_class_statistics(
    part: AlignableClassifier,
    span: TaskSpan,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    precision: str,
    seed: int,
) -> None:
    """Describe each class of a task by mean and variance of its features.

    Args:
        part: a method or a part of one, in evaluation mode; it computes the features and keeps
            their statistics.
        span: the task.
        batches: the task's training images, each once, and their labels.
        precision: trainer.precision.
        seed: of k-means, where a class has several centroids.
    """
    all_features, all_labels = [], []
    for images, labels in batches:
        with torch.no_grad(), autocast(precision, images.device):
            features = part.task_features(images, span).to(full_precision(precision))
        all_features.append(collectives.gathered(features))
        all_labels.append(collectives.gathered(labels))
    features, labels = torch.cat(all_features), torch.cat(all_labels)
    for label in span.classes:
        part.statistics.record(label, features[labels == label], seed=seed)
