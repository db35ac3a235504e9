"""One Gaussian for each class, all with the same covariance: what methods with a linear classifier
from class means and one scatter matrix have in common.

Letters: K classes, C features, M features after a fixed map (C where there is none), n images.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.methods._shared.closed_form import ClassMoments, OnePass, features_of
from smope.methods.base import Batches, Recollection, TaskSpan


class LinearDiscriminant(OnePass):
    """With class means m and P the inverse of `spread()`, logits are x·P m - m·P m / 2.

    They rank classes as minus the squared Mahalanobis distance to their means does. The order of
    images does not matter. Memory does not depend on their number: K·M + M² numbers in float64.

    Args:
        width: M.
    """

    learning_only = ("moments",)

    def __init__(self, backbone: Backbone, num_classes: int, width: int) -> None:
        super().__init__(backbone, num_classes)
        if width != backbone.embed_dim:
            self.classifier = nn.Linear(width, num_classes).requires_grad_(False)
        self.moments = ClassMoments(num_classes, width, "shared")

    def mapped(self, features: Tensor) -> Tensor:
        """features (n, C) -> what classes are compared by, (n, M)."""
        return features

    @abstractmethod
    def spread(self) -> Tensor:
        """The matrix that distances are measured by, (M, M) in float64."""

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.mapped(features))

    @torch.no_grad()
    def recollect(self, count: int) -> Recollection | None:
        if not self.moments.counts.any():
            return None
        samples, labels = self.moments.sample(count)
        logits = self.classifier(samples.to(self.classifier.weight))
        origin = f"{count} samples of each class's Gaussian"
        return Recollection(logits, labels.to(logits.device), origin)

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        """Of mapped features, as the moments are."""
        return self.moments.class_cosines(self.mapped(features))

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        for features, labels in features_of(self, batches, self.moments.means.device):
            self.moments.add(self.mapped(features), labels)
        self._solve()

    @property
    def shares_sums(self) -> bool:
        return True

    @torch.no_grad()
    def withdraw(self, label: int, features: Tensor | None) -> None:
        self.moments.withdraw(label, None if features is None else self.mapped(features))
        if features is not None:
            self._solve()

    def _solve(self) -> None:
        """The classifier of the present moments."""
        means = self.moments.means
        weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(self.spread())).T
        self.classifier.weight.copy_(weight)
        self.classifier.bias.copy_(-(weight * means).sum(1) / 2)
