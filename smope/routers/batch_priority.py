"""The best K experts of each token, as long as these have room: sure tokens come first.

Batch priority routing of V-MoE (Riquelme et al. 2021, arXiv 2106.05974, section 4), after
google-research/vmoe.

Shapes: H heads, E experts of a head, K chosen experts, G groups of S tokens.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.declare.ranges import AtLeast, NotNegative, Positive
from smope.routers.grouped_tokens import GroupedTokens

MULTIPLE = 4  # room is rounded up to a multiple, as in V-MoE's code


class BatchPriority(GroupedTokens):
    """A token chooses the experts of its K largest gates. An expert has room for ceil(S · K ·
    capacity / E) tokens, rounded up to a multiple of 4; what comes later is left out.

    First come all first choices, then all second ones; within these, tokens in the order of their
    largest gate.

    Args:
        top_k: K.
        capacity: In training; 1 is room for all tokens if use is even.
        evaluation_capacity: In evaluation.
        noise: Standard deviation of the noise in training, in units of 1/E.
    """

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        capacity: Annotated[float, Positive()] = 1.05,
        evaluation_capacity: Annotated[float, Positive()] = 4.0,
        noise: Annotated[float, NotNegative()] = 1.0,
    ) -> None:
        super().__init__(top_k, noise)
        self.capacity = capacity
        self.evaluation_capacity = evaluation_capacity

    def room(self, tokens: int, num_experts: int) -> int:
        """How many of S tokens an expert can take."""
        capacity = self.capacity if self.training else self.evaluation_capacity
        wanted = math.ceil(tokens * self.top_k * capacity / num_experts)
        return math.ceil(wanted / MULTIPLE) * MULTIPLE

    def taken(self, gates: Tensor) -> Tensor:
        """As in `GroupedTokens.taken`."""
        tokens, num_experts = gates.shape[1], gates.shape[-1]
        largest, choices = gates.topk(self.top_k, dim=-1)
        order = largest[..., 0].argsort(dim=1, descending=True, stable=True)  # (G, S, H)
        left = torch.full_like(gates[:, :1], self.room(tokens, num_experts), dtype=torch.int64)
        taken = torch.zeros_like(gates, dtype=torch.bool)
        for rank in range(self.top_k):
            expert_ids = choices[..., rank].gather(1, order)
            wanted = F.one_hot(expert_ids, num_experts)
            fits = (wanted.cumsum(1) <= left) & (wanted > 0)
            left = left - wanted.sum(1, keepdim=True)
            taken = taken | torch.zeros_like(taken).scatter(
                1, order.unsqueeze(-1).expand(gates.shape), fits
            )
        return taken
