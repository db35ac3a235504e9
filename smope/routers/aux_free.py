"""Balance without a loss: a bias on each expert, moved against its load (Wang et al. 2024, arXiv
2408.15664; DeepSeek-V3).

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.declare.ranges import AtLeast, NotNegative
from smope.routers.base import ExpertState, Router, Routing, best, proxy_scores
from smope.routers.gate import gated_weights
from smope.routers.step_sum import StepSum


class AuxFree(Router):
    """Ranks experts by gate plus bias; the bias decides on the choice alone.

    With h = score / sqrt(D), as in attention, the gate s is sigmoid(h) or softmax(h) over all E.
    After each optimizer step, with c_e the images that chose expert e in it,

        bias_e <- bias_e + bias_rate · sign(mean(c) - c_e).

    The chosen experts share their part of attention as s / sum(s). How large this part is beside
    the tokens, their scores decide as for other routers. With softmax that is what the scores
    themselves do.

    Args:
        top_k: K, how many experts are chosen.
        gate: "sigmoid" or "softmax".
        bias_rate: How far the bias moves in a step. 0.003 takes some 300 steps to overcome the
            largest difference of two sigmoid gates, and balances runs of a few hundred steps. The
            authors' 0.001 is for runs of many thousands; at 0.01 the load of some blocks swings.
            Softmax gates are near 1/E, so a rate must be small against 1/E.
        next_task: "keep": the bias carries on through the next task. "reset": a task starts
            from 0.
    """

    counts_choice = True
    bias: Tensor

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        gate: Literal["sigmoid", "softmax"] = "sigmoid",
        bias_rate: Annotated[float, NotNegative()] = 0.003,
        next_task: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__(top_k)
        self.gate = gate
        self.bias_rate = bias_rate
        self.next_task = next_task
        self.plain_weights = gate == "softmax"

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: bias (H, E), in the precision of the keys, never in half."""
        self.register_buffer("bias", torch.zeros(num_heads, num_experts))
        self.step_sum = StepSum(num_heads, num_experts, torch.int64)

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`."""
        scores = proxy_scores(query, keys)
        scale = keys.shape[-1] ** -0.5
        logits = scores.detach() * scale
        gates = logits.sigmoid() if self.gate == "sigmoid" else logits.softmax(-1)
        expert_ids = best(gates + self.bias, self.top_k, state.available)
        weights = scores.gather(-1, expert_ids)
        if self.gate == "sigmoid":
            log_gates = F.logsigmoid(weights * scale).log_softmax(-1)
            weights = gated_weights(log_gates, weights, scale)
        routing = Routing(scores, expert_ids, weights)
        if self.training:
            self.step_sum.add(self.uses(routing), len(scores))
        return routing

    def begin_task(self) -> None:
        if self.next_task == "reset":
            self.bias.zero_()

    @torch.no_grad()
    def end_step(self) -> None:
        taken = self.step_sum.take()
        if taken is None:
            return
        counts, _ = taken
        # sign(mean - count), in whole numbers
        error = counts.sum(-1, keepdim=True) - counts * counts.shape[-1]
        self.bias += self.bias_rate * error.sign()
