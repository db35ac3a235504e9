"""Streaming linear discriminant analysis on frozen features (SLDA, Hayes and Kanan 2020, arXiv
1909.01520).
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import Share
from smope.methods._shared.closed_form import ClassMoments, OnePass, features_of
from smope.methods.base import Batches, Recollection, Reference, TaskSpan


class StreamingLDA(OnePass):
    """One Gaussian for each class, all with the same covariance; the classifier is linear.

    With class means m and the shared covariance S, let P = ((1 - shrinkage) S + shrinkage I)^-1.
    Weight rows are P m, biases -m·P m / 2. The paper updates S one image at a time and weighs an
    image's distance to its class mean by the number of images so far. Here S is the pooled
    covariance within classes, so the order of images does not matter.

    Memory does not depend on the number of images: K·C + C² numbers in float64 (6 MB for ViT-B/16
    and 200 classes).

    Args:
        shrinkage: weight of the identity in the covariance.
    """

    reference = Reference(
        "Hayes and Kanan 2020, arXiv 1909.01520",
        "one pass over frozen features, nothing is trained",
    )
    learning_only = ("moments",)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        shrinkage: Annotated[float, Share(with_0=False)] = 1e-4,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.shrinkage = shrinkage
        self.moments = ClassMoments(num_classes, backbone.embed_dim, "shared")

    @torch.no_grad()
    def recollect(self, count: int) -> Recollection | None:
        if not self.moments.counts.any():
            return None
        features, labels = self.moments.sample(count)
        logits = self.classify(features.to(self.classifier.weight))
        origin = f"{count} samples of each class's Gaussian"
        return Recollection(logits, labels.to(logits.device), origin)

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        return self.moments.class_cosines(features)

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        moments = self.moments
        for features, labels in features_of(self, batches, moments.means.device):
            moments.add(features, labels)
        self._solve()

    @property
    def shares_sums(self) -> bool:
        return True

    @torch.no_grad()
    def withdraw(self, label: int, features: Tensor | None) -> None:
        self.moments.withdraw(label, features)
        if features is not None:
            self._solve()

    def _solve(self) -> None:
        """The classifier of the present moments."""
        moments = self.moments
        identity = torch.eye(moments.means.shape[1]).to(moments.means)
        covariance = (1 - self.shrinkage) * moments.covariance(0) + self.shrinkage * identity
        weight = torch.cholesky_solve(moments.means.T, torch.linalg.cholesky(covariance)).T
        self.classifier.weight.copy_(weight)
        self.classifier.bias.copy_(-(weight * moments.means).sum(1) / 2)
