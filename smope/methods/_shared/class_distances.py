"""Mahalanobis distances to class means, with a covariance for each class or one for all.

Letters: B batch, K classes, C features, G groups of classes with a covariance of their own.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.methods._shared.closed_form import ClassMoments, OnePass, features_of, joined
from smope.methods.base import Batches, Recollection, TaskSpan


class ClassDistances(OnePass):
    """Logits are minus the squared distances to class means, which a subclass may change.

    A subclass says by which matrix the distances of a group are measured. If a class comes again,
    its mean and covariance become those of all its images. Memory does not depend on the number of
    images: G·C² numbers in float32 for covariances, and as much again for the matrices that
    distances need.

    Args:
        covariance: "class" keeps one for each class, "shared" the pooled covariance within classes.
    """

    learning_only = ("moments.means",)  # distances need only the others
    whitening: Tensor | None

    def __init__(
        self, backbone: Backbone, num_classes: int, covariance: Literal["class", "shared"]
    ) -> None:
        super().__init__(backbone, num_classes)
        self.moments = ClassMoments(num_classes, backbone.embed_dim, covariance, torch.float32)
        # Follows from the moments: (G, C, C), made when first needed and not saved.
        self.register_buffer("whitening", None, persistent=False)
        self.register_load_state_dict_post_hook(_forget_whitening)

    @abstractmethod
    def measure(self, covariance: Tensor) -> Tensor:
        """The matrix R of a group's distances (x - m)·R^-1 (x - m), positive definite, from the
        covariance of the group, both (C, C) in float64.
        """

    def mapped(self, features: Tensor) -> Tensor:
        """features (B, C) -> what classes are compared by, (B, C)."""
        return features

    def compare(self, mapped: Tensor) -> Tensor:
        """Mapped features (B, C) -> logits (B, K)."""
        if self.whitening is None:
            self.whitening = self._find_whitening().to(mapped)
        apart = mapped - self.classifier.weight.unsqueeze(1)  # (K, B, C)
        return -(apart @ self.whitening.transpose(-2, -1)).square().sum(-1).T

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        moments = self.moments
        # All images of a task at once: float32 sums of batches would depend on the order of images.
        features, labels = joined(features_of(self, batches, moments.means.device))
        moments.add(self.mapped(features), labels)
        # The classifier holds the means; whitening and moments have the rest of the distance.
        self.classifier.weight.copy_(moments.means)
        self.classifier.bias.zero_()
        self.whitening = None

    def train(self, mode: bool = True) -> ClassDistances:
        """As torch's. In evaluation the whitening is there before a graph is exported."""
        super().train(mode)
        if not mode and self.whitening is None and self.moments.counts.any():
            self.whitening = self._find_whitening().to(self.classifier.weight)
        return self

    @property
    def shares_sums(self) -> bool:
        return len(self.moments.scatter) == 1

    @torch.no_grad()
    def withdraw(self, label: int, features: Tensor | None) -> None:
        if self.shares_sums:
            self.moments.withdraw(label, None if features is None else self.mapped(features))
            self.whitening = None

    @torch.no_grad()
    def recollect(self, count: int) -> Recollection | None:
        """The samples are mapped features, as the moments are."""
        if not self.moments.counts.any():
            return None
        samples, labels = self.moments.sample(count)
        logits = self.compare(self.resampled(samples.to(self.classifier.weight)))
        origin = f"{count} samples of each class's Gaussian"
        return Recollection(logits, labels.to(logits.device), origin)

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        """Of mapped features, as the moments are."""
        return self.moments.class_cosines(self.mapped(features))

    def resampled(self, samples: Tensor) -> Tensor:
        """Samples of a class's Gaussian (n, C) as the mapped features that they stand for."""
        return samples

    def classify(self, features: Tensor) -> Tensor:
        return self.compare(self.mapped(features))

    @torch.no_grad()
    def _find_whitening(self) -> Tensor:
        """L^-1 with R = L·Lᵀ for each group, (G, C, C), so that a distance is |L^-1 (x - m)|²; the
        identity for classes without images.

        The matrices together are the largest object in memory. So they are computed one at a time
        in float64 and written into one tensor.
        """
        scatter = self.moments.scatter
        identity = torch.eye(scatter.shape[-1], dtype=torch.float64, device=scatter.device)
        whitening = torch.empty_like(scatter)
        counts = self.moments.counts
        seen = (counts if len(scatter) > 1 else counts.sum().view(1)).tolist()
        for group, matrix in enumerate(whitening):
            if not seen[group]:
                matrix.copy_(identity)
                continue
            factor = torch.linalg.cholesky(self.measure(self.moments.covariance(group)))
            matrix.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        return whitening


def _forget_whitening(method: ClassDistances, _: Any) -> None:
    method.whitening = None
