"""What of a method is aligned, where its logits in the alignment are not those at test."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from smope.methods._shared.class_gaussians import ClassGaussians
from smope.methods.base import TaskSpan


class AlignedPart:
    """A method in the alignment: with its class statistics, its classifier and its features of a
    task. A subclass defines `classify`. See AlignableClassifier.

    Args:
        method: its classifier is aligned; it has class Gaussians as `statistics`.
    """

    def __init__(self, method: Any) -> None:
        self.method = method

    @property
    def statistics(self) -> ClassGaussians:
        return self.method.statistics

    @property
    def classifier(self) -> nn.Module:
        return self.method.classifier

    def task_features(self, images: Tensor, task: TaskSpan) -> Tensor:
        return self.method.task_features(images, task)

    def classify(self, features: Tensor) -> Tensor:
        """features (B, C) -> logits (B, num_classes)."""
        raise TypeError(f"{type(self).__name__} does not define classify(features)")
