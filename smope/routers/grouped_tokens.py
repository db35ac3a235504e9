"""What routers share that divide the tokens of a group among experts with limited room.

A group is the tokens of the whole batch in training, as in V-MoE (Riquelme et al. 2021, arXiv
2106.05974), and those of one image in evaluation, so that an image alone is what it is in a batch.

Gates are softmax(h) over all E, h = score / sqrt(D), in training with noise of 1/E. They are not
divided by their sum, and a token may end up with any number of experts; with none it attends to
tokens alone. How gates enter attention: gate.py.

Shapes: B batch, N tokens, H heads, E experts of a head, D head width, G groups of S tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from smope.routers import noise as noises
from smope.routers.base import (
    ExpertState,
    Router,
    Routing,
    of_available,
    proxy_scores,
    rows_of_tokens,
)
from smope.routers.gate import gated_weights


class GroupedTokens(Router):
    """Base of such routers; a subclass says in `taken` which tokens an expert takes.

    Args:
        top_k: K, how many experts a token has on average where there is room.
        noise: Standard deviation of the noise, in units of 1/E.
    """

    exports = False
    reads_tokens = True
    couples_batch = True
    random_in_training = True
    fixed_number = False
    plain_weights = False
    # which experts are chosen says nothing about balance: there is room for so many tokens
    balance_losses = ("importance", "router_z")

    def __init__(self, top_k: int, noise: float) -> None:
        super().__init__(top_k)
        self.noise = noise
        self.random_in_training = noise > 0

    def taken(self, gates: Tensor) -> Tensor:
        """Which tokens each expert takes.

        Args:
            gates: (G, S, H, E), 0 for experts that are not available.

        Returns:
            (G, S, H, E) bool.
        """
        raise TypeError(f"{type(self).__name__} does not define taken(gates) -> Tensor")

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`, for queries (B, H, N, D): a row for each token."""
        tokens, scale = query.shape[2], keys.shape[-1] ** -0.5
        scores = proxy_scores(rows_of_tokens(query), keys)
        noisy = scores * scale
        if self.training and self.noise > 0:
            noisy = noisy + self.noise / keys.shape[1] * noises.normal(noisy)
        noisy = of_available(noisy, state.available)
        gates = noisy.detach().softmax(-1)
        groups = gates.unsqueeze(0) if self.training else gates.unflatten(0, (-1, tokens))
        taken = (self.taken(groups) & (groups > 0)).flatten(0, 1)
        # of a token without experts the sum is 0, and its logarithm has no gradient
        chosen = scores.masked_fill(~taken, -torch.inf)
        chosen = torch.where(taken.any(-1, keepdim=True), chosen, scores)
        weights = gated_weights(noisy.log_softmax(-1), chosen, scale)
        expert_ids = torch.arange(keys.shape[1], device=keys.device).expand_as(scores)
        return Routing(
            scores,
            expert_ids,
            weights.masked_fill(~taken, -torch.inf),
            scores * scale,
            tokens=tokens,
            average=self.top_k,
        )

    def dense(self, query: Tensor, keys: Tensor) -> Routing:
        """As in `Router.dense`, for each token."""
        return replace(super().dense(rows_of_tokens(query), keys), tokens=query.shape[2])

    def uses(self, routing: Routing) -> Tensor:
        """As in `Router.uses`: the tokens that each expert took."""
        return routing.chosen.sum(0)
