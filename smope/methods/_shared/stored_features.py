"""Features of earlier images, which move along when the network goes on learning."""

from __future__ import annotations

import torch
from torch import Tensor

from smope.methods._shared.closed_form import FixedPrecision
from smope.methods._shared.drift import moved


class StoredFeatures(FixedPrecision):
    """Up to P features of each class; no images.

    Where a class has more than P images, or comes again, those that stay are spread evenly over
    all its images in the order in which they came.

    Buffers: features (K, P, C) in float32; images (K,), how many each class had.

    Args:
        num_classes: K.
        per_class: P.
        width: C.
    """

    features: Tensor
    images: Tensor

    def __init__(self, num_classes: int, per_class: int, width: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(num_classes, per_class, width))
        self.register_buffer("images", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def counts(self) -> Tensor:
        """How many features of each class are stored, (K,)."""
        return self.images.clamp(0, self.features.shape[1])

    def all(self) -> tuple[Tensor, Tensor]:
        """All features (n, C) in float64, class after class, and their labels (n,)."""
        used = self._used()
        return self.features[used].double(), used.nonzero()[:, 0]

    def _used(self) -> Tensor:
        """Which of the P rows of each class hold a feature, (K, P) bool."""
        numbers = torch.arange(self.features.shape[1], device=self.images.device)
        return numbers < self.counts[:, None]

    @torch.no_grad()
    def carry(self, before: Tensor, after: Tensor, penalty: float) -> None:
        """Move all features as those of a task's images moved while the task was learned.

        Args:
            before: (n, C) in float64.
            after: (n, C).
            penalty: see drift.moved.
        """
        used = self._used()
        rows = moved(self.features[used].double(), before, after, penalty)
        self.features[used] = rows.to(self.features)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add images.

        Args:
            features: (n, C).
            labels: (n,).
        """
        for label in labels.unique().tolist():
            self._add(label, features[labels == label].to(self.features))

    def _add(self, label: int, new: Tensor) -> None:
        limit = self.features.shape[1]
        earlier, images = int(self.counts[label]), int(self.images[label]) + len(new)
        old = self.features[label, :earlier]
        if images > limit:
            share = round(limit * len(new) / images)
            new, old = _spread(new, share), _spread(old, limit - share)
        stored = torch.cat([old, new])
        self.features[label, : len(stored)] = stored
        self.images[label] = images

    @torch.no_grad()
    def remove(self, label: int) -> None:
        """Forget the features of a class."""
        self.features[label] = 0
        self.images[label] = 0


def _spread(rows: Tensor, count: int) -> Tensor:
    """`count` of the rows (n, C), at most n, evenly spaced from the first on."""
    return rows[torch.arange(count, device=rows.device) * len(rows) // max(count, 1)]
