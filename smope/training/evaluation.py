"""Accuracy on the test images of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from smope.distributed import collectives
from smope.methods.base import Method
from smope.training.expert_counts import ExpertCounts, count_choices
from smope.training.feature_cache import PassedBatch
from smope.training.loading import TaskLoader
from smope.training.precision import evaluated_features
from smope.training.recording import Recorder

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages


def passed_batches(
    method: Method, images: TaskImages, loader: TaskLoader, precision: str, recorder: Recorder
) -> Iterator[PassedBatch]:
    """Pass test images through the network up to the classifier.

    Args:
        method: in evaluation mode.
        images: the test images.
        loader: loads them.
        precision: trainer.precision.
        recorder: decides whether chosen experts are wanted.

    Returns:
        The batches, in order.
    """
    for batch, labels in loader.of_test(images):
        features = evaluated_features(method, batch, precision)
        experts = recorder.chosen_experts(method)
        labels = collectives.gathered(labels)
        yield PassedBatch(features, labels, experts, count_choices(method))


@torch.no_grad()
def measure_accuracy(
    method: Method,
    batches: Iterable[PassedBatch],
    *,
    seen_classes: int,
    recorder: Recorder,
    expert_counts: ExpertCounts,
) -> float:
    """Classify the test images of a task, all classes seen so far competing.

    Args:
        method: what classifies; it is left in evaluation mode.
        batches: the test images.
        seen_classes: the first so many classes compete; others are never predicted.
        recorder: sees every batch, for the analysis.
        expert_counts: sees every choice of experts.

    Returns:
        The fraction of the images that are classified right.
    """
    method.eval()
    correct = images = 0
    for batch in batches:
        logits = collectives.gathered(method.classify(batch.features)[:, :seen_classes])
        recorder.add(logits, batch.labels, batch.experts)
        expert_counts.add(batch.choices)
        correct += int((logits.argmax(-1) == batch.labels).sum())
        images += len(logits)
    return correct / images
