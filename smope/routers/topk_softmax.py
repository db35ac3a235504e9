"""First the best K, then the softmax over these: the order of Mixtral.

Jiang et al. 2024, arXiv 2401.04088. It is the same as the softmax over all experts, the best K of
it, divided by their sum.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from smope.declare.ranges import AtLeast
from smope.routers.base import ExpertState, Routing, best, proxy_scores
from smope.routers.gate import GatedRouter, gated_weights


class TopKSoftmax(GatedRouter):
    """g = softmax of the K largest logits, so that gates sum to 1 (gate.py says what they do).

    With gate="keys" these are the weights of router=topk: attention itself is a softmax over the
    chosen experts. With K = 1 the gate is 1, whatever its logit, so a learned gate then learns from
    losses alone that compare all experts, such as the balance loss.

    Args:
        top_k, gate, next_task: As in gate.GatedRouter.
    """

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        gate: Literal["keys", "learned"] = "keys",
        next_task: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__(top_k, gate, next_task)

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`."""
        scores, logits = proxy_scores(query, keys), self.logits(query, keys)
        expert_ids = best(logits.detach(), self.top_k, state.available)
        log_gates = logits.gather(-1, expert_ids).log_softmax(-1)
        weights = gated_weights(log_gates, scores.gather(-1, expert_ids), keys.shape[-1] ** -0.5)
        return Routing(scores, expert_ids, weights, logits)
