"""The best K experts of each token: the prefix attention that SMoPE's aggregation replaces.

Shapes: B batch, N tokens, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import Tensor

from smope.declare.ranges import AtLeast
from smope.routers.base import (
    ExpertState,
    Router,
    Routing,
    choose,
    proxy_scores,
    rows_of_tokens,
)


class Token(Router):
    """Every token has scores of its own, its query times the keys, and attends to its own K best
    experts.

    With K = E this is plain prefix attention. It costs O(N·E·D) where the mean query costs
    O((N + E)·D). Use of experts is counted in tokens.
    """

    reads_tokens = True

    def __init__(self, top_k: Annotated[int, AtLeast(1)] = 5) -> None:
        super().__init__(top_k)

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`, for queries (B, H, N, D): a row for each token."""
        scores = proxy_scores(rows_of_tokens(query), keys)
        routing = choose(scores, scores, self.top_k, state.available)
        return replace(routing, tokens=query.shape[2])

    def dense(self, query: Tensor, keys: Tensor) -> Routing:
        """As in `Router.dense`: plain prefix attention."""
        return replace(super().dense(rows_of_tokens(query), keys), tokens=query.shape[2])
