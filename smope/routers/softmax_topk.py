"""First the softmax over all experts, then the best K of it, not divided by their sum: the order of
V-MoE.

Riquelme et al. 2021, arXiv 2106.05974, and the authors' code, google-research/vmoe.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from smope.declare.ranges import AtLeast, NotNegative
from smope.routers import noise as noises
from smope.routers.base import ExpertState, Noise, Routing, best, of_available, proxy_scores
from smope.routers.gate import GatedRouter, gated_weights


class SoftmaxTopK(GatedRouter):
    """g = softmax(h + (noise / E) · ε) over all E, of which the K largest are chosen; ε ~ N(0, 1)
    in training, 0 in evaluation.

    Gates of the chosen experts sum to less than 1 unless K = E, and scale down the attention that
    these experts get (gate.py). So the gate learns with K = 1 too. With K = E and no noise this is
    router=dense.

    The load loss takes the probability that h_e with new noise reaches the K-th largest noisy
    logit, 1 - Φ((threshold - h_e) / std); the importance loss takes the softmax without noise.

    Args:
        noise: Standard deviation of the noise, in units of 1/E.
        top_k, gate, next_task: As in gate.GatedRouter.
    """

    random_in_training = True
    balance_losses = ("importance", "load", "balance", "router_z")

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        noise: Annotated[float, NotNegative()] = 1.0,
        gate: Literal["keys", "learned"] = "keys",
        next_task: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__(top_k, gate, next_task)
        self.noise = noise
        self.random_in_training = noise > 0

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`."""
        scores, logits = proxy_scores(query, keys), self.logits(query, keys)
        noisy, drawn = logits, None
        if self.training and self.noise > 0:
            std = self.noise / keys.shape[1]
            noisy = logits + std * noises.normal(logits)
            drawn = Noise(noisy, std, state.available)
        expert_ids = best(noisy.detach(), self.top_k, state.available)
        log_gates = of_available(noisy, state.available).log_softmax(-1).gather(-1, expert_ids)
        weights = gated_weights(log_gates, scores.gather(-1, expert_ids), keys.shape[-1] ** -0.5)
        return Routing(scores, expert_ids, weights, logits, drawn)

    def load(self, routing: Routing) -> Tensor:
        """As in `Router.load`."""
        assert routing.noise is not None and routing.logits is not None
        threshold = routing.noise.noisy.gather(-1, routing.expert_ids[..., -1:])
        return routing.noise.chance(routing.logits, threshold)
