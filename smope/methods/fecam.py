"""Mahalanobis distance to class means, a covariance for each class (FeCAM, Goswami et al. 2023,
arXiv 2309.14062).

Letters: B batch, K classes, C features, G groups of classes with a covariance of their own.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.methods._shared.closed_form import ClassMoments, OnePass, features_of, joined
from smope.methods.base import Batches, Card, TaskSpan


class FeCAM(OnePass):
    """Classifies by the smallest squared Mahalanobis distance; logits are minus that distance.

    Let z = x / |x| be the normalised feature, m and S a class's mean and covariance of it. The
    distance is (z - m)·R^-1 (z - m), where R is the correlation matrix of S + diagonal·v I +
    off_diagonal·w (1 - I), v and w the means of S on and off its diagonal.

    diagonal, off_diagonal: shrinkage. The authors' programs for ViTs take 1 and 0, for ImageNet-R
        10 and 10.
    tukey:                  power of Tukey's transform, sign(x)·|x|^tukey, before the normalisation.
                            The paper's 0.5 is
                            for the features of a ResNet, which are never negative; its programs for
                            ViTs have none.
    covariance:             "class", or "shared": one, the pooled covariance within classes, for
                            all.

    Where a class comes again, mean and covariance become those of all its images. Memory, whatever
    the number of images: G·C² numbers in float32 for covariances, as much again for the matrices
    that distances need (0.94 GB in all for ViT-B/16, 200 classes and "class"; 5 MB for "shared"),
    and to classify B images about 3·K·B·C numbers in float32 (0.24 GB for 128 images); while a task
    is learned, also its images' features.
    """

    card = Card(
        "Goswami et al. 2023, arXiv 2309.14062", "one pass over frozen features, nothing is trained"
    )
    learning_only = ("moments.means",)  # distances follow from the rest of them
    whitening: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        covariance: Literal["class", "shared"] = "class",
        diagonal: float = 1.0,
        off_diagonal: float = 0.0,
        tukey: float | None = None,
    ) -> None:
        super().__init__(backbone, num_classes)
        self.diagonal = diagonal
        self.off_diagonal = off_diagonal
        self.tukey = tukey
        self.moments = ClassMoments(num_classes, backbone.embed_dim, covariance, torch.float32)
        # Follows from the moments: (G, C, C), made when first needed and not saved.
        self.register_buffer("whitening", None, persistent=False)
        self.register_load_state_dict_post_hook(_forget_whitening)

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        moments = self.moments
        # All of a task's images at once: float32 sums, taken batch by batch, would depend on their
        # order.
        features, labels = joined(features_of(self, batches, moments.means.device))
        moments.add(self._normalised(features), labels)
        # what a class is known by; the distance needs more
        self.classifier.weight.copy_(moments.means)
        self.classifier.bias.zero_()
        self.whitening = None

    def classify(self, features: Tensor) -> Tensor:
        if self.whitening is None:
            self.whitening = self._find_whitening().to(features)
        apart = self._normalised(features) - self.classifier.weight.unsqueeze(1)  # (K, B, C)
        return -(apart @ self.whitening.mT).square().sum(-1).T

    def _normalised(self, features: Tensor) -> Tensor:
        if self.tukey is not None:
            features = features.sign() * features.abs().pow(self.tukey)
        return F.normalize(features, dim=-1)

    @torch.no_grad()
    def _find_whitening(self) -> Tensor:
        """(G, C, C): L^-1 with R = L·Lᵀ, so that a distance is |L^-1 (x - m)|²; the identity where
        nothing is known.

        One matrix at a time in float64, and written into its place: all of them together are the
        largest thing in memory, and must be there once.
        """
        scatter = self.moments.scatter
        identity = torch.eye(scatter.shape[-1], dtype=torch.float64, device=scatter.device)
        found = torch.empty_like(scatter)
        for group, place in enumerate(found):
            if not scatter[group].any():
                place.copy_(identity)
                continue
            factor = torch.linalg.cholesky(
                self._correlation(self.moments.covariance(group), identity)
            )
            place.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        return found

    def _correlation(self, covariance: Tensor, identity: Tensor) -> Tensor:
        """R of one covariance (C, C)."""
        width = len(covariance)
        on = covariance.diagonal().mean()
        off = (covariance.sum() - covariance.trace()) / max(1, width * (width - 1))
        shrunk = (
            covariance + self.diagonal * on * identity + self.off_diagonal * off * (1 - identity)
        )
        deviation = shrunk.diagonal().sqrt()
        return shrunk / torch.outer(deviation, deviation)


def _forget_whitening(method: FeCAM, _: Any) -> None:
    method.whitening = None
