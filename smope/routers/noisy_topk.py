"""A learned gate with learned noise, the best K of it, and the softmax over these.

Shazeer et al. 2017, arXiv 1701.06538, section 2.1 and appendix A.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.declare.ranges import AtLeast
from smope.routers import noise as noises
from smope.routers.base import ExpertState, Noise, Router, Routing, best, proxy_scores
from smope.routers.gate import GateMatrix, gated_weights

LEAST_STD = 1e-2  # as in the authors' code, so that the load has a gradient
FAR_BELOW = -1e6  # every logit; minus infinity would make gradients nan


class NoisyTopK(Router):
    """With the mean query x of an image in a head, and ε ~ N(0, 1) in training, 0 in evaluation,

        h = x·W_gate        std = softplus(x·W_noise) + 0.01        noisy = h + std · ε

    the K experts with the largest noisy logits are chosen, and g is the softmax over these K, so
    that gates sum to 1 (gate.py says what they do). Keys only say how much attention the chosen
    experts get together. Both matrices start from 0: choices are even by chance then, and the noise
    learns to be small.

    The importance loss takes g, the load loss the probability that an expert is among the best K if
    its own noise alone is drawn again.

    Args:
        top_k: K, at least 2: the softmax over one expert is 1, whatever the gate.
        next_task: What happens to both matrices when a task begins: "keep", or "reset" to 0.
    """

    plain_weights = False
    counts_choice = True
    random_in_training = True
    balance_losses = ("importance", "load", "balance", "router_z")
    cv_correction = 1

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(2)] = 5,
        next_task: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__(top_k)
        self.next_task = next_task

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: W_gate and W_noise of each head, (H, E, D)."""
        self.gate = GateMatrix(num_heads, num_experts, head_dim, zero=True)
        self.spread = GateMatrix(num_heads, num_experts, head_dim, zero=True)

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`."""
        scores, logits = proxy_scores(query, keys), self.gate(query)
        noisy, drawn = logits, None
        if self.training:
            std = F.softplus(self.spread(query)) + LEAST_STD
            noisy = logits + std * noises.normal(logits)
            drawn = Noise(noisy, std, state.available)
        expert_ids = best(noisy.detach(), self.top_k, state.available)
        log_gates = noisy.gather(-1, expert_ids).log_softmax(-1)
        weights = gated_weights(log_gates, scores.gather(-1, expert_ids), keys.shape[-1] ** -0.5)
        return Routing(scores, expert_ids, weights, logits, drawn)

    def importance(self, routing: Routing, logits: Tensor) -> Tensor:
        """As in `Router.importance`: the gates, 0 for experts that are not chosen."""
        noisy = logits if routing.noise is None else routing.noise.noisy
        gates = noisy.gather(-1, routing.expert_ids).softmax(-1)
        return torch.zeros_like(logits).scatter(-1, routing.expert_ids, gates)

    def load(self, routing: Routing) -> Tensor:
        """As in `Router.load`: a chosen expert stays as long as it is above the largest that is not
        chosen; another one has to exceed the smallest that is.
        """
        noise = routing.noise
        assert noise is not None and routing.logits is not None
        ranking = noise.noisy
        if noise.available is not None:
            ranking = ranking.masked_fill(~noise.available, FAR_BELOW)
        largest = ranking.topk(self.top_k + 1, dim=-1).values
        smallest_chosen, largest_other = largest[..., -2:-1], largest[..., -1:]
        threshold = torch.where(routing.chosen, largest_other, smallest_chosen)
        return noise.chance(routing.logits, threshold)

    def begin_task(self) -> None:
        if self.next_task == "reset":
            self.gate.reset()
            self.spread.reset()
