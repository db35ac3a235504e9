"""Every expert for every image: SMoPE's warm-up, and the ablation without routing.

Shapes: B batch, H heads, E experts of a head, D head width.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from smope.declare.ranges import AtLeast
from smope.routers.base import ExpertState, Router, Routing


class Dense(Router):
    """All experts enter the softmax with their proxy scores.

    `top_k` decides only which experts count as used and are targets of the prototype loss.
    """

    sparse = False
    balance_losses = ()

    def __init__(self, top_k: Annotated[int, AtLeast(1)] = 5) -> None:
        super().__init__(top_k)

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`, with K = E; `expert_ids` are 0 to E - 1 in order."""
        return self.dense(query, keys)
