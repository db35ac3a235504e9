"""The best K experts by proxy score: the ablation without adaptive noise.

Shapes: B batch, H heads, E experts of a head, D head width.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from smope.declare.ranges import AtLeast
from smope.routers.base import ExpertState, Router, Routing, choose, proxy_scores


class TopK(Router):
    """Ranks experts by their scores alone, in training and in evaluation."""

    def __init__(self, top_k: Annotated[int, AtLeast(1)] = 5) -> None:
        super().__init__(top_k)

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`."""
        scores = proxy_scores(query, keys)
        return choose(scores, scores, self.top_k, state.available)
