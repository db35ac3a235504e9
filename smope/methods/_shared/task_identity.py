"""Infers which task an image belongs to, from its feature without prompts (HiDe-Prompt).

Shapes: B batch, C feature width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smope.methods._shared.class_statistics import ClassStatistics
from smope.methods.base import TaskSpan


class Residual(nn.Module):
    """norm(x + W2·gelu(W1·x)) for x (B, C); the inner layer is 2C wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.inner(x))


class TaskIdentity(nn.Module):
    """Classifies among all classes seen, and gives the task of the class.

    The classifier is a residual layer and a linear one. It is trained on the classes of a task and
    aligned on class statistics of features without prompts: it is an AlignableClassifier.

    Args:
        width: C.
        num_classes: classes of the stream.
        centroids: Gaussians of each class, for alignment.
        query: images -> features (B, C) without prompts.
    """

    # statistics.count is not among them: it says which classes were seen.
    learning_only = ("statistics.mean", "statistics.variance")
    task_of: Tensor

    def __init__(
        self, width: int, num_classes: int, centroids: int, query: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.classifier = nn.Sequential(Residual(width), nn.Linear(width, num_classes))
        self.statistics = ClassStatistics(num_classes, centroids, width)
        self._query = query
        self.register_buffer("task_of", torch.zeros(num_classes, dtype=torch.int64))

    def task_features(self, images: Tensor, task: TaskSpan) -> Tensor:
        return self._query(images)

    def classify(self, features: Tensor) -> Tensor:
        """features (B, C) -> logits (B, num_classes)."""
        return self.classifier(features)

    def forward(self, query: Tensor) -> Tensor:
        """query (B, C) -> task of each image (B,), among tasks with class statistics; 0 before the
        first.
        """
        unseen = ~self.statistics.known.any(-1)
        logits = self.classify(query).masked_fill(unseen & ~unseen.all(), float("-inf"))
        return self.task_of[logits.argmax(-1)]

    def begin_task(self, task: TaskSpan) -> None:
        """Note that the classes belong to this task."""
        self.task_of[list(task.classes)] = task.index
