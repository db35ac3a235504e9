"""Soft MoE's slots for prompt experts (Puigcerver et al. 2024, arXiv 2308.00951).

In Soft MoE an expert works on slots, weighted means of an image's tokens, and every token takes a
weighted mean of what came out. A prompt expert's output is its value, whatever its input, so a slot
can only decide how much the expert matters: here an expert has one slot, a weighted mean of the
image's queries, and its score is the inner product of slot and key. Attention's own softmax
combines the experts, all of them, with the tokens.

The slots are those of one image, so that an image alone is what it is in a batch. With a scale of 0
all slots are the mean query and the router is `dense`; SMoPE's mean query is that special case.

Shapes: B batch, N tokens, H heads, E experts of a head, D head width.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smope.declare.ranges import AtLeast, NotNegative
from smope.routers.base import ExpertState, Router, Routing, all_experts


class Soft(Router):
    """All experts, each scored by its slot = sum_n softmax_n(scale · cos(q_n, key)) · q_n.

    Args:
        top_k: only which experts count as used and are targets of the prototype loss.
        scale: The initial value. Each head learns its own.
    """

    sparse = False
    reads_tokens = True
    balance_losses = ()

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        scale: Annotated[float, NotNegative()] = 1.0,
    ) -> None:
        super().__init__(top_k)
        self.start_scale = scale

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: the scale (H)."""
        self.scale = nn.Parameter(torch.full((num_heads,), self.start_scale))

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`, for queries (B, H, N, D); `expert_ids` are 0 to E - 1."""
        return self.dense(query, keys)

    def dense(self, query: Tensor, keys: Tensor) -> Routing:
        """As in `Router.dense`: it is dense anyway."""
        with torch.autocast(query.device.type, enabled=False):
            query = query.to(keys.dtype)
            scores = torch.einsum("bhnd,hed->bhne", query, keys)
            alike = torch.einsum(
                "bhnd,hed->bhne", F.normalize(query, dim=-1), F.normalize(keys, dim=-1)
            )
            dispatch = (self.scale[:, None, None] * alike).softmax(2)
            return all_experts((dispatch * scores).sum(2))
