"""Virtual outliers: points far from the features, and a loss that makes a classifier unsure there.

Source: Huang et al. 2024 (OVOR, arXiv 2402.04129), after NPOS (Tao et al. 2023).

Shapes: B features, V outliers, n points or centres, C feature width, N classes of the task.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def far_from(points: Tensor, features: Tensor, neighbours: int, number: int) -> Tensor:
    """The points whose k-th nearest feature is farthest away.

    A point that is itself one of the features counts as its own neighbour, as in the authors' code.

    Args:
        points: (n, C), candidates.
        features: (B, C).
        neighbours: k; with fewer features than that, k is their number.
        number: How many points to choose; with fewer points than that, all are chosen.

    Returns:
        (min(number, n),) indices of points, farthest first.
    """
    distances = torch.cdist(points, features)
    # topk and not kthvalue, which has no deterministic kernel on every accelerator
    kth = distances.topk(min(neighbours, len(features)), dim=1, largest=False).values[:, -1]
    return kth.topk(min(number, len(points))).indices


def shifted(centres: Tensor, noise: float, number: int) -> Tensor:
    """Points around each centre: centre + noise · standard normal draws, the same for all centres.

    Args:
        centres: (n, C).
        noise: Standard deviation.
        number: Points for each centre.

    Returns:
        (n · number, C), the points of the first centre first.
    """
    draws = noise * torch.randn(number, centres.shape[1], dtype=torch.float32).to(centres)
    return (centres.unsqueeze(1) + draws).flatten(0, 1)


def energy_loss(
    logits: Tensor, outlier_logits: Tensor, feature_threshold: float, outlier_threshold: float
) -> Tensor:
    """Pushes the energy of features below one threshold and that of outliers above another.

    The energy of a point is -logsumexp of its logits. The loss is the Huber loss of
    relu(energy - feature_threshold), mean over features, plus that of
    relu(outlier_threshold - energy), mean over outliers.

    Args:
        logits: (B, N), of the features.
        outlier_logits: (V, N), of the outliers.
        feature_threshold: Energy that features should stay below.
        outlier_threshold: Energy that outliers should stay above.

    Returns:
        A scalar.
    """
    above = F.relu(-logits.logsumexp(-1) - feature_threshold)
    below = F.relu(outlier_threshold + outlier_logits.logsumexp(-1))
    return sum(F.huber_loss(x, torch.zeros_like(x)) for x in (above, below))  # pyright: ignore[reportReturnType]
