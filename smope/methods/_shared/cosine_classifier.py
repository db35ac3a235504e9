"""A classifier by cosines, whose logits do not depend on the length of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineClassifier(nn.Module):
    """scale · cosine of a feature and the row of a class; no bias.

    Parameters: weight (num_classes, C), uniform in ±1/sqrt(C).

    Args:
        width: C.
        num_classes: classes of the stream.
        scale: s; the largest logit.
    """

    def __init__(self, width: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(num_classes, width).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C) -> logits (B, num_classes), in full precision: bfloat16 would round a
        logit of 50 to quarters.
        """
        with torch.autocast(features.device.type, enabled=False):
            directions = F.normalize(features.to(self.weight.dtype), dim=-1)
            return self.scale * F.linear(directions, F.normalize(self.weight, dim=-1))
