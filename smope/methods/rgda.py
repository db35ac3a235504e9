"""Regularised Gaussian discriminant analysis (RGDA, Rao et al. 2026, arXiv 2602.00144).

After the paper and its public code, on frozen features. LR-RGDA, which approximates this classifier
by matrices of low rank, and the paper's training and drift compensation are not part of this.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import NotNegative, Positive
from smope.methods._shared.class_distances import ClassDistances
from smope.methods.base import Reference


class RegularisedGDA(ClassDistances):
    """A Gaussian for each class; logits are log densities, all classes being equally frequent.

    With the covariance S of a class and A the mean of these over classes, the covariance of its
    Gaussian is R = own·S + average·A + identity·I, and the logit -(x - m)·R^-1 (x - m) / 2 -
    log det R / 2.

    Memory is that of method=fecam with a covariance for each class.

    Args:
        own: weight of the class's covariance. The public code has 0.2 for this and the other two in
            one place and 0.25 in another.
        average: weight of the mean covariance.
        identity: weight of the identity, in units of the backbone's features.
    """

    reference = Reference(
        "Rao et al. 2026, arXiv 2602.00144 (RGDA), and the authors' code",
        "one pass over frozen features, nothing is trained",
    )
    _mean_covariance: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        own: Annotated[float, NotNegative()] = 0.2,
        average: Annotated[float, NotNegative()] = 0.2,
        identity: Annotated[float, Positive()] = 0.2,
    ) -> None:
        super().__init__(backbone, num_classes, "class")
        self.own = own
        self.average = average
        self.identity = identity

    def measure(self, covariance: Tensor) -> Tensor:
        identity = torch.eye(len(covariance)).to(covariance)
        return (
            self.own * covariance + self.average * self._mean_covariance + self.identity * identity
        )

    def compare(self, mapped: Tensor) -> Tensor:
        squared = super().compare(mapped)
        assert self.whitening is not None
        # det L^-1 = det R^(-1/2)
        return squared / 2 + self.whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @torch.no_grad()
    def _find_whitening(self) -> Tensor:
        seen = self.moments.counts.nonzero()[:, 0].tolist()
        total = torch.zeros_like(self.moments.scatter[0], dtype=torch.float64)
        for label in seen:
            total += self.moments.covariance(label)
        self._mean_covariance = total / max(1, len(seen))
        return super()._find_whitening()
