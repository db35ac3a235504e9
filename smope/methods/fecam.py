"""FeCAM: Mahalanobis distance to class means, with a covariance for each class (Goswami et al.
2023, arXiv 2309.14062).

Letters: C features, G groups of classes with a covariance of their own.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import NotNegative, Positive, Share
from smope.methods._shared.class_distances import ClassDistances
from smope.methods.base import Reference


class FeCAM(ClassDistances):
    """Classifies by the smallest squared Mahalanobis distance; logits are minus that distance.

    Let z = x / |x| be the normalised feature, and m and S the mean and covariance of z in a class.
    The distance is (z - m)·R^-1 (z - m). R is the correlation matrix of S + diagonal·v I +
    off_diagonal·w (1 - I), where v and w are the means of S on and off its diagonal; the identity
    where S is 0.

    Memory does not depend on the number of images: G·C² numbers in float32 for covariances, as much
    again for the matrices that distances need (0.94 GB in all for ViT-B/16, 200 classes and
    "class"; 5 MB for "shared"), and about 3·K·B·C numbers in float32 to classify B images (0.24 GB
    for 128). While a task is learned, the features of its images are kept too.

    Args:
        covariance: "class" keeps one for each class, "shared" the pooled covariance within classes.
        diagonal: shrinkage. The authors' code for ViTs has 1, for ImageNet-R 10.
        off_diagonal: shrinkage. The authors' code for ViTs has 0, for ImageNet-R 10.
        tukey: power of Tukey's transform sign(x)·|x|^tukey before the normalisation; None: no
            transform. The paper's 0.5 is for features of a ResNet, which are never negative; its
            code for ViTs has none.
    """

    reference = Reference(
        "Goswami et al. 2023, arXiv 2309.14062", "one pass over frozen features, nothing is trained"
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        covariance: Literal["class", "shared"] = "class",
        diagonal: Annotated[float, Positive()] = 1.0,
        off_diagonal: Annotated[float, NotNegative()] = 0.0,
        tukey: Annotated[float | None, Share(with_0=False)] = None,
    ) -> None:
        super().__init__(backbone, num_classes, covariance)
        self.diagonal = diagonal
        self.off_diagonal = off_diagonal
        self.tukey = tukey

    def mapped(self, features: Tensor) -> Tensor:
        """features (B, C) -> z (B, C)."""
        if self.tukey is not None:
            features = features.sign() * features.abs().pow(self.tukey)
        return F.normalize(features, dim=-1)

    def resampled(self, samples: Tensor) -> Tensor:
        return F.normalize(samples, dim=-1)

    def measure(self, covariance: Tensor) -> Tensor:
        width = len(covariance)
        identity = torch.eye(width).to(covariance)
        if not covariance.any():
            return identity
        on = covariance.diagonal().mean()
        off = (covariance.sum() - covariance.trace()) / max(1, width * (width - 1))
        shrunk = (
            covariance + self.diagonal * on * identity + self.off_diagonal * off * (1 - identity)
        )
        deviation = shrunk.diagonal().sqrt()
        return shrunk / torch.outer(deviation, deviation)
