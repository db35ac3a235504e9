"""Experts by a fixed hash of the image's mean query: a control that learns no choice.

Hash layers (Roller et al. 2021, arXiv 2106.04426) fix which expert a word uses by a random table.
Images have no number to look up, so the mean query is hashed, by the signs of its inner products
with random directions (Charikar 2002). Signs do not change when numbers are rounded.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width, S bits of the hash.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from smope.declare.ranges import AtLeast, Range
from smope.routers.base import ExpertState, Router, Routing, choose, proxy_scores

# Mean queries are alike, and so are their signs; whether an odd number of them is negative is not.
SIGNS_OF_A_BIT = 8


class Hash(Router):
    """Each bit votes for or against every expert; the K experts with most votes are chosen.

    With fixed normal random numbers r_si (D) and g_se, bit b_s is the product of the signs of r_si
    · query over i = 1..8, and expert e has sum_s b_s · g_se votes. Images of equal bits have the
    same experts, and all experts are used alike. A query depends on the experts of earlier blocks,
    so in later blocks the hash of an image changes while these learn.

    Keys have no part in the choice; they decide how much attention the chosen experts get.

    Args:
        top_k: K, how many experts are chosen.
        bits: S; 2^S images at most are told apart.
        hash_seed: Another seed is another hash.
    """

    counts_choice = True
    directions: Tensor
    votes: Tensor

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        bits: Annotated[int, Range(1, 1024)] = 16,
        hash_seed: Annotated[int, Range(0, 2147483647)] = 0,
    ) -> None:
        super().__init__(top_k)
        self.bits = bits
        self.hash_seed = hash_seed

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: directions (H, D, 8·S) and votes (H, S, E), never trained."""
        draw = torch.Generator().manual_seed(self.hash_seed)
        directions = torch.randn(num_heads, head_dim, self.bits * SIGNS_OF_A_BIT, generator=draw)
        votes = torch.randn(num_heads, self.bits, num_experts, generator=draw)
        self.register_buffer("directions", directions)
        # of equal length, so that no expert wins more often than others
        self.register_buffer("votes", votes / votes.norm(dim=1, keepdim=True))

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`; the votes are the ranking."""
        scores = proxy_scores(query, keys)
        with torch.autocast(query.device.type, enabled=False):
            plain = query.detach().to(self.directions.dtype)
            signs = torch.einsum("bhd,hds->bhs", plain, self.directions).sign()
            bits = signs.unflatten(-1, (self.bits, SIGNS_OF_A_BIT)).prod(-1)
            votes = torch.einsum("bhs,hse->bhe", bits, self.votes)
        return choose(scores, votes, self.top_k, state.available)
