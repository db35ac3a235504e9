"""The best expert by softmax over all, on inputs that are jittered in training: Switch Transformer.

Fedus et al. 2021, arXiv 2101.03961. Its balance loss is method.balance_loss_weight=0.01.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from smope.declare.ranges import AtLeast, Share
from smope.routers import noise as noises
from smope.routers.base import ExpertState, Routing, best, of_available, proxy_scores
from smope.routers.gate import GatedRouter, gated_weights


class Switch(GatedRouter):
    """g = softmax(h) over all E, of which the K largest are chosen. The logits h are those of the
    query, each number of which is multiplied in training by one from uniform(1 - jitter, 1 +
    jitter).

    Gates are not divided by their sum and scale down the attention that the chosen experts get
    (gate.py), so that the gate learns with K = 1.

    Args:
        jitter: Largest relative change of a number of the query.
        top_k, gate, next_task: As in gate.GatedRouter. GShard's K is 2.
    """

    random_in_training = True

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 1,
        jitter: Annotated[float, Share(with_1=False)] = 0.01,
        gate: Literal["keys", "learned"] = "keys",
        next_task: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__(top_k, gate, next_task)
        self.jitter = jitter
        self.random_in_training = jitter > 0

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`; scores are those of the query without jitter."""
        query = query.to(keys.dtype)
        scores, jittered = proxy_scores(query, keys), query
        if self.training and self.jitter > 0:
            jittered = query * (1 + self.jitter * (2 * noises.uniform(query) - 1))
        logits = self.logits(jittered, keys)
        expert_ids = best(logits.detach(), self.top_k, state.available)
        log_gates = of_available(logits, state.available).log_softmax(-1).gather(-1, expert_ids)
        weights = gated_weights(log_gates, scores.gather(-1, expert_ids), keys.shape[-1] ** -0.5)
        return Routing(scores, expert_ids, weights, logits)
