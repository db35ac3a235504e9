"""FeCAM: Mahalanobis distance to class means, with a covariance for each class (Goswami et al.
2023, arXiv 2309.14062).

Letters: B batch, K classes, C features, G groups of classes with a covariance of their own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import NotNegative, Positive, Share
from smope.methods._shared.closed_form import ClassMoments, OnePass, features_of, joined
from smope.methods.base import Batches, Recollection, Reference, TaskSpan


class FeCAM(OnePass):
    """Classifies by the smallest squared Mahalanobis distance; logits are minus that distance.

    Let z = x / |x| be the normalised feature, and m and S the mean and covariance of z in a class.
    The distance is (z - m)·R^-1 (z - m). R is the correlation matrix of S + diagonal·v I +
    off_diagonal·w (1 - I), where v and w are the means of S on and off its diagonal.

    If a class comes again, its mean and covariance become those of all its images.

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
    learning_only = ("moments.means",)  # distances need only the others
    whitening: Tensor | None

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
        # All images of a task at once: float32 sums of batches would depend on the order of images.
        features, labels = joined(features_of(self, batches, moments.means.device))
        moments.add(self._normalised(features), labels)
        # The classifier holds the means; whitening and moments have the rest of the distance.
        self.classifier.weight.copy_(moments.means)
        self.classifier.bias.zero_()
        self.whitening = None

    def train(self, mode: bool = True) -> FeCAM:
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
            self.moments.withdraw(label, None if features is None else self._normalised(features))
            self.whitening = None

    @torch.no_grad()
    def recollect(self, count: int) -> Recollection | None:
        """The samples are normalised features, as the moments are."""
        if not self.moments.counts.any():
            return None
        features, labels = self.moments.sample(count)
        logits = self._compare(F.normalize(features, dim=-1).to(self.classifier.weight))
        origin = f"{count} samples of each class's Gaussian"
        return Recollection(logits, labels.to(logits.device), origin)

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        """Of normalised features, as the moments are."""
        return self.moments.class_cosines(self._normalised(features))

    def classify(self, features: Tensor) -> Tensor:
        return self._compare(self._normalised(features))

    def _compare(self, normalised: Tensor) -> Tensor:
        """Normalised features (B, C) -> logits (B, K)."""
        if self.whitening is None:
            self.whitening = self._find_whitening().to(normalised)
        apart = normalised - self.classifier.weight.unsqueeze(1)  # (K, B, C)
        return -(apart @ self.whitening.transpose(-2, -1)).square().sum(-1).T

    def _normalised(self, features: Tensor) -> Tensor:
        if self.tukey is not None:
            features = features.sign() * features.abs().pow(self.tukey)
        return F.normalize(features, dim=-1)

    @torch.no_grad()
    def _find_whitening(self) -> Tensor:
        """L^-1 with R = L·Lᵀ for each group, (G, C, C), so that a distance is |L^-1 (x - m)|²; the
        identity where nothing is known.

        The matrices together are the largest object in memory. So they are computed one at a time
        in float64 and written into one tensor.
        """
        scatter = self.moments.scatter
        identity = torch.eye(scatter.shape[-1], dtype=torch.float64, device=scatter.device)
        whitening = torch.empty_like(scatter)
        for group, matrix in enumerate(whitening):
            if not scatter[group].any():
                matrix.copy_(identity)
                continue
            correlation = self._correlation(self.moments.covariance(group), identity)
            factor = torch.linalg.cholesky(correlation)
            matrix.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        return whitening

    def _correlation(self, covariance: Tensor, identity: Tensor) -> Tensor:
        """R for one covariance (C, C)."""
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
