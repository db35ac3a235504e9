"""Experts beside a frozen layer: they read its input, and add to its output.

Shapes: B batch, N tokens, C width of the input, W width of the output, E experts, K chosen experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smope.experts.bank import LowRankBank
from smope.experts.routed import RoutedWrapper
from smope.routers.base import Routing

LEAST = -1e30  # as a logit nothing, but finite, so that its gradient is a number


class ExpertsBeside(RoutedWrapper):
    """A layer with experts of low rank beside it.

    There is one head, H = 1, as wide as the input, D = C: the query of an image is the mean over
    tokens of what the layer reads (B, 1, C), keys are (1, E, C), and a choice holds for all tokens
    and all channels. Output = layer(x) + Σ over the K chosen experts of share_k · expert_k(x).
    """

    bank: LowRankBank

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, W)."""
        out = self.layer(x)
        keys, _ = self.bank()
        routing = self.route(x.unsqueeze(1), keys)
        assert routing.tokens is None, "inject.attach refuses routers that choose for each token"
        shares = self._shares(routing)
        added = self.bank.experts(x, routing.expert_ids[:, 0], shares[:, 0])
        return out + added.to(out.dtype)

    def _shares(self, routing: Routing) -> Tensor:
        """exp(weight / sqrt(C)) over Σ_chosen exp(score / sqrt(C)), (B, 1, K): a softmax where
        weights are scores, and the gates themselves where a router has gates (routers/gate.py).
        """
        chosen = routing.weights > -torch.inf
        scores = routing.scores.gather(-1, routing.expert_ids) * self.scale
        total = scores.masked_fill(~chosen, LEAST).logsumexp(-1, keepdim=True)
        return (routing.weights * self.scale - total).masked_fill(~chosen, -torch.inf).exp()
