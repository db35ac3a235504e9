"""Each expert chooses its tokens: the order of experts and tokens the other way round.

Zhou et al. 2022, arXiv 2202.09368; NoisyTopItemsPerExpertRouter of google-research/vmoe.

Shapes: H heads, E experts of a head, G groups of S tokens.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from smope.declare.ranges import AtLeast, NotNegative
from smope.routers.grouped_tokens import GroupedTokens


class ExpertChoice(GroupedTokens):
    """Every expert takes the ceil(S · K / E) tokens of a group whose gate for it is largest, so
    that use is even by construction. A token may get no expert, or all of them.

    Args:
        top_k: K, how many experts a token has on average (V-MoE's capacity factor).
        noise: Standard deviation of the noise in training, in units of 1/E.
    """

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        noise: Annotated[float, NotNegative()] = 1.0,
    ) -> None:
        super().__init__(top_k, noise)

    def taken(self, gates: Tensor) -> Tensor:
        """As in `GroupedTokens.taken`."""
        room = math.ceil(gates.shape[1] * self.top_k / gates.shape[-1])
        best = gates.topk(room, dim=1).indices
        return torch.zeros_like(gates, dtype=torch.bool).scatter(1, best, True)
