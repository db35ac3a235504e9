"""Streaming linear discriminant analysis on frozen features (SLDA, Hayes and Kanan 2020, arXiv
1909.01520).
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import Share
from smope.methods._shared.linear_discriminant import LinearDiscriminant
from smope.methods.base import Reference


class StreamingLDA(LinearDiscriminant):
    """One Gaussian for each class, all with the same covariance; the classifier is linear.

    With the shared covariance S, distances are measured by (1 - shrinkage) S + shrinkage I. The
    paper updates S one image at a time and weighs an image's distance to its class mean by the
    number of images so far. Here S is the pooled covariance within classes, so the order of images
    does not matter.

    Memory does not depend on the number of images: K·C + C² numbers in float64 (6 MB for ViT-B/16
    and 200 classes).

    Args:
        shrinkage: weight of the identity in the covariance.
    """

    reference = Reference(
        "Hayes and Kanan 2020, arXiv 1909.01520",
        "one pass over frozen features, nothing is trained",
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        shrinkage: Annotated[float, Share(with_0=False)] = 1e-4,
    ) -> None:
        super().__init__(backbone, num_classes, backbone.embed_dim)
        self.shrinkage = shrinkage

    def spread(self) -> Tensor:
        covariance = self.moments.covariance(0)
        identity = torch.eye(len(covariance)).to(covariance)
        return (1 - self.shrinkage) * covariance + self.shrinkage * identity
