"""Gates: what routers of the literature have beside a choice, and how it enters attention.

In those papers an expert's output is multiplied by its gate value. Here experts are key-value pairs
that an image attends to beside its tokens. A weight w takes part in attention as exp(w / sqrt(D)),
and the K chosen experts have weights such that

    exp(w_e / sqrt(D)) = g_e · Σ_chosen exp(score / sqrt(D))

How much attention the chosen experts get together, their scores decide as for other routers. They
share it in proportion to the gates g_e. Gates that sum to less than 1 scale it down.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from smope.routers.base import Router, proxy_scores


def gated_weights(log_gates: Tensor, scores: Tensor, scale: float) -> Tensor:
    """The weights of the chosen experts by the formula above, in logarithms, so that no sum is 0.

    Args:
        log_gates: (B, H, K), the logarithm of g.
        scores: (B, H, K), the proxy scores of the chosen experts.
        scale: 1/sqrt(D).

    Returns:
        (B, H, K).
    """
    return (log_gates + (scores * scale).logsumexp(-1, keepdim=True)) / scale


class GateMatrix(nn.Module):
    """A linear gate of each head, without bias: a row of D numbers for each expert.

    Args:
        num_heads: H.
        num_experts: E.
        head_dim: D.
        zero: Start from 0, otherwise from uniform(-1, 1)/sqrt(D), as nn.Linear does.
    """

    def __init__(self, num_heads: int, num_experts: int, head_dim: int, zero: bool = False) -> None:
        super().__init__()
        self.zero = zero
        self.weight = nn.Parameter(torch.empty(num_heads, num_experts, head_dim))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Start anew."""
        bound = 0.0 if self.zero else self.weight.shape[-1] ** -0.5
        self.weight.uniform_(-bound, bound)

    def forward(self, query: Tensor) -> Tensor:
        """Mean queries (B, H, D) -> logits (B, H, E), outside autocast."""
        return proxy_scores(query, self.weight)


class GatedRouter(Router):
    """A router whose gate is the expert keys, or a matrix of its own.

    With keys, the logits are the proxy scores, scaled as in attention. With a matrix, the keys only
    say how much attention the chosen experts get together.

    Args:
        top_k: K, how many experts are chosen.
        gate: "keys" or "learned".
        next_task: What happens to a learned gate when a task begins: "keep", or "reset" to new
            random numbers. Keys are kept.
    """

    plain_weights = False
    counts_choice = True
    matrix: GateMatrix | None

    def __init__(
        self, top_k: int, gate: Literal["keys", "learned"], next_task: Literal["keep", "reset"]
    ) -> None:
        super().__init__(top_k)
        self.gate = gate
        self.next_task = next_task
        self.matrix = None

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: the matrix of a learned gate."""
        if self.gate == "learned":
            self.matrix = GateMatrix(num_heads, num_experts, head_dim)

    def logits(self, query: Tensor, keys: Tensor) -> Tensor:
        """The logits (B, H, E) of mean queries (B, H, D); keys (H, E, D)."""
        if self.matrix is not None:
            return self.matrix(query)
        return proxy_scores(query, keys) * keys.shape[-1] ** -0.5

    def begin_task(self) -> None:
        if self.matrix is not None and self.next_task == "reset":
            self.matrix.reset()
