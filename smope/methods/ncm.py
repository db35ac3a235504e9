"""Nearest class mean on frozen features: no training at all (SimpleCIL, Zhou et al. 2023, arXiv 2303.07338)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.methods.base import Batches, Method, Phase, TaskSpan


class NearestClassMean(Method):
    """Classifies by the closest mean of a class's training features (evaluation transform, one pass).

    similarity: "cosine" between feature and mean, as in SimpleCIL, or "euclidean" distance. The classifier's weight
    rows are the means: logits are cosines, or 2·x·m - |m|², which ranks as -|x - m|² does.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, *, similarity: Literal["cosine", "euclidean"] = "cosine"
    ) -> None:
        super().__init__(backbone, num_classes, align=False)
        self.similarity = similarity
        self.classifier.requires_grad_(False)

    def phases(self, task: TaskSpan, epochs: int, dense_epochs: int) -> list[Phase]:
        return []

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return []

    def classify(self, features: Tensor) -> Tensor:
        if self.similarity == "cosine":
            features = F.normalize(features, dim=-1)
        return self.classifier(features)

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        weight, bias = self.classifier.weight, self.classifier.bias
        # Summed in float64 on the CPU: not every accelerator has it.
        sums = torch.zeros(task.stop - task.start, weight.shape[1], dtype=torch.float64)
        counts = torch.zeros(task.stop - task.start, 1, dtype=torch.float64)
        for images, labels in batches("plain"):
            rows = labels.cpu() - task.start
            sums.index_add_(0, rows, self.features(images).cpu().double())
            counts.index_add_(0, rows, torch.ones_like(rows, dtype=torch.float64).unsqueeze(1))
        means = (sums / counts.clamp(min=1)).to(weight)
        if self.similarity == "cosine":
            weight[task.start : task.stop] = F.normalize(means, dim=-1)
            bias.zero_()
        else:
            weight[task.start : task.stop] = 2 * means
            bias[task.start : task.stop] = -means.square().sum(-1)
