"""The best K experts by a random gate that is never trained: a control for what routing learns.

Chen et al. 2023 (SMoE-Dropout, arXiv 2303.01610) train experts under such a router.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from smope.declare.ranges import AtLeast, Range
from smope.routers.base import ExpertState, Router, Routing, choose, proxy_scores


class Random(Router):
    """Ranks experts by the inner product of the mean query and fixed normal random numbers.

    An image keeps its experts, in training and in evaluation, whatever its batch; alike images have
    alike experts, as with learned keys. Keys have no part in the choice; they decide how much
    attention the chosen experts get.

    Args:
        top_k: K, how many experts are chosen.
        gate_seed: Another seed is another gate.
    """

    counts_choice = True
    gate: Tensor

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        gate_seed: Annotated[int, Range(0, 2147483647)] = 0,
    ) -> None:
        super().__init__(top_k)
        self.gate_seed = gate_seed

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: gate (H, E, D), never trained."""
        draw = torch.Generator().manual_seed(self.gate_seed)
        self.register_buffer("gate", torch.randn(num_heads, num_experts, head_dim, generator=draw))

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`; the random gate is the ranking."""
        ranking = proxy_scores(query.detach(), self.gate)
        return choose(proxy_scores(query, keys), ranking, self.top_k, state.available)
