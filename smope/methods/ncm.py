"""Nearest class mean on frozen features: no training at all (SimpleCIL, Zhou et al. 2023, arXiv
2303.07338).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.methods._shared.class_statistics import mean_cosines
from smope.methods._shared.closed_form import (
    CLASS_MEANS,
    COSINE_TEMPERATURE,
    OnePass,
    features_of,
)
from smope.methods.base import Batches, Recollection, Reference, TaskSpan


class NearestClassMean(OnePass):
    """Classifies by the closest class mean of training features, from one pass over the images.

    The rows of the classifier's weight are the means m. Logits are cosines, divided by 0.03 so that
    their softmax is a probability (closed_form.COSINE_TEMPERATURE); or 2·x·m - |m|², which ranks
    classes as -|x - m|² does, and is not scaled to give probabilities.

    Args:
        similarity: "cosine" of feature and mean, as in SimpleCIL, or "euclidean" distance.
    """

    reference = Reference(
        "Zhou et al. 2023, arXiv 2303.07338 (SimpleCIL)",
        "one pass over frozen features, nothing is trained",
    )
    learning_only = ("means", "counts")
    means: Tensor
    counts: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        similarity: Literal["cosine", "euclidean"] = "cosine",
    ) -> None:
        super().__init__(backbone, num_classes)
        self.similarity = similarity
        # Classes may come again with other images; then their means are updated.
        self.register_buffer("means", torch.zeros(num_classes, backbone.embed_dim))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    def classify(self, features: Tensor) -> Tensor:
        if self.similarity == "cosine":
            return self.classifier(F.normalize(features, dim=-1)) / COSINE_TEMPERATURE
        return self.classifier(features)

    @torch.no_grad()
    def recollect(self, count: int) -> Recollection | None:
        labels = self.counts.nonzero()[:, 0]
        if not len(labels):
            return None
        return Recollection(self.classify(self.means[labels]), labels, CLASS_MEANS)

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        labels = self.counts.nonzero()[:, 0]
        return mean_cosines(features, labels, self.means[labels], self.num_classes)

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        # Summed in float64 on the CPU: not every accelerator has it.
        sums = self.means.cpu().double() * self.counts.cpu().unsqueeze(1)
        counts = self.counts.cpu().clone()
        for features, labels in features_of(self, batches, sums.device):
            sums.index_add_(0, labels, features)
            counts += torch.bincount(labels, minlength=len(counts))
        self.means.copy_(sums / counts.clamp(min=1).unsqueeze(1))
        self.counts.copy_(counts)
        if self.similarity == "cosine":
            self.classifier.weight.copy_(F.normalize(self.means, dim=-1))
            self.classifier.bias.zero_()
        else:
            self.classifier.weight.copy_(2 * self.means)
            self.classifier.bias.copy_(-self.means.square().sum(-1))
