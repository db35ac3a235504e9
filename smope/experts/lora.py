"""LoRA on a linear layer, such as the joint projection to q, k and v (Hu et al. 2022, arXiv
2106.09685).

Shapes: C width of the input, W width of the output, E experts, r rank.
"""

from __future__ import annotations

from smope.experts.low_rank import LowRankExperts


class LoRA(LowRankExperts):
    """E changes of rank r to the weight (W, C) of a linear layer: scale · x · downᵀ · up.

    In the letters of the paper, down is A (E, r, C), up is Bᵀ (E, r, W), and alpha = scale · r.
    On qkv, W = 3C: 4·E·r·C parameters.
    """
