"""A loss on pairs of features: alike within a class, not too alike between classes.

Source: RSIAT (2026), after the authors' code. Shapes: B batch, C feature width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_loss(features: Tensor, labels: Tensor, other_weight: float, other_margin: float) -> Tensor:
    """Mean of 1 - cosine over pairs of one class, plus a weight times the mean of
    relu(cosine - margin) over pairs of two classes.

    A batch without pairs of either kind has 0 for it.

    Args:
        features: (B, C).
        labels: (B,).
        other_weight: of pairs of two classes, alpha.
        other_margin: cosine that such a pair may have.

    Returns:
        A scalar.
    """
    directions = F.normalize(features, dim=-1)
    cosines = directions @ directions.T
    same = labels.unsqueeze(1) == labels
    other, alike = ~same, same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    apart = _mean((1 - cosines).relu(), alike)
    return apart + other_weight * _mean((cosines - other_margin).relu(), other)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen values; 0 if none is."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
