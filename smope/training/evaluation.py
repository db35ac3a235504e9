"""Accuracy on the test images of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smope.distributed import collectives
from smope.methods.base import Method
from smope.training.expert_counts import ExpertCounts
from smope.training.loading import TaskLoader
from smope.training.precision import evaluated
from smope.training.recording import Recorder

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages


def measure_accuracy(
    method: Method,
    images: TaskImages,
    loader: TaskLoader,
    *,
    seen_classes: int,
    precision: str,
    recorder: Recorder,
    expert_counts: ExpertCounts,
) -> float:
    """Classify the test images of a task, all classes seen so far competing.

    Args:
        method: what classifies; it is left in evaluation mode.
        images: the test images.
        loader: loads them.
        seen_classes: the first so many classes compete; others are never predicted.
        precision: trainer.precision.
        recorder: sees every batch, for the analysis.
        expert_counts: sees every choice of experts.

    Returns:
        The fraction of the images that are classified right.
    """
    method.eval()
    correct = 0
    for batch, labels in loader.of_test(images):
        logits = evaluated(method, batch, precision)[:, :seen_classes]
        logits = collectives.gathered(logits)
        recorder.add(logits, method)
        expert_counts.add(method)
        correct += int((logits.argmax(-1) == collectives.gathered(labels)).sum())
    return correct / len(images)
