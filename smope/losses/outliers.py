"""Virtual outliers: points far from the features at hand, and a loss that makes a classifier unsure
of them.

Huang et al. 2024 (OVOR, arXiv 2402.04129), after NPOS (Tao et al. 2023). Shapes: B features, V
outliers, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def far_from(points: Tensor, features: Tensor, neighbours: int, number: int) -> Tensor:
    """Which `number` of the points (n, C) have the farthest k-th nearest feature (B, C): indices,
    farthest first.

    k is `neighbours`, or the number of features where there are fewer; a point that is one of the
    features counts itself, as in the program. All points, where there are no more than `number`.
    """
    distances = torch.cdist(points, features)
    # topk and not kthvalue, which has no deterministic kernel on every accelerator
    kth = distances.topk(min(neighbours, len(features)), dim=1, largest=False).values[:, -1]
    return kth.topk(min(number, len(points))).indices


def shifted(centres: Tensor, noise: float, number: int) -> Tensor:
    """`number` points round each of the centres (n, C) -> (n · number, C): the same draws of noise
    for all.
    """
    draws = noise * torch.randn(number, centres.shape[1], dtype=torch.float32).to(centres)
    return (centres.unsqueeze(1) + draws).flatten(0, 1)


def energy_loss(
    logits: Tensor, outlier_logits: Tensor, feature_threshold: float, outlier_threshold: float
) -> Tensor:
    """Huber losses of how far the energy -logsumexp is above its threshold for features, and below
    for outliers.

    logits (B, n) and outlier_logits (V, n), of the task's n classes -> scalar.
    """
    above = F.relu(-logits.logsumexp(-1) - feature_threshold)
    below = F.relu(outlier_threshold + outlier_logits.logsumexp(-1))
    return sum(F.huber_loss(x, torch.zeros_like(x)) for x in (above, below))  # pyright: ignore[reportReturnType]
