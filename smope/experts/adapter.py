"""Adapters beside the MLP of a block, as AdaptFormer has them (Chen et al. 2022, arXiv 2205.13535).

Shapes: C width, E experts, r rank.
"""

from __future__ import annotations

from torch import Tensor

from smope.experts.low_rank import SCALE, LowRankExperts


class Adapters(LowRankExperts):
    """E adapters that read what the MLP reads: scale · ReLU(x · downᵀ) · up, without biases.

    down and up are (E, r, C): 2·E·r·C parameters.

    Args:
        num_experts: E.
        rank: r.
        width: C.
        scale: 0.1 in AdaptFormer.
    """

    def __init__(self, num_experts: int, rank: int, width: int, scale: float = SCALE) -> None:
        super().__init__(num_experts, rank, width, width, scale)

    def activation(self, hidden: Tensor) -> Tensor:
        """ReLU."""
        return hidden.relu()
