"""SMoPE's router: the best K experts by score, with a penalty on those that earlier tasks need.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from smope.declare.ranges import AtLeast, NotNegative
from smope.routers.base import ExpertState, Router, Routing, choose, proxy_scores, score_range

# In units of the score range. More than 1 ranks an expert behind all experts without a penalty.
UNUSED_PENALTY = 2.0


class AdaptiveNoise(Router):
    """Ranks experts by score minus penalty · range.

    The range is the largest minus the smallest score of the image in that head. The penalty is

    - in training: `epsilon` for each expert flagged `frequent`, so that new tasks prefer free
      experts;
    - in evaluation: 2 for each expert that was never used, which excludes it.

    Le et al. 2026 (arXiv 2509.24483) call this adaptive noise. It is deterministic, as in the
    authors' code.

    Args:
        top_k: K, how many experts are chosen.
        epsilon: Penalty in training, and margin of the router loss, in units of the range.
        exclude_unused_experts: Whether evaluation excludes experts that were never used. The
            authors' final tables come from a reloaded model without counts, so there nothing was
            excluded.
    """

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        epsilon: Annotated[float, NotNegative()] = 0.4,
        exclude_unused_experts: bool = True,
    ) -> None:
        super().__init__(top_k, epsilon)
        self.exclude_unused_experts = exclude_unused_experts

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`; scores enter the softmax without their penalty."""
        scores = proxy_scores(query, keys)
        if self.training:
            penalty, held_back = self.epsilon, state.frequent
        elif self.exclude_unused_experts:
            penalty, held_back = UNUSED_PENALTY, state.counts == 0
        else:
            return choose(scores, scores, self.top_k)
        plain = scores.detach()
        ranking = torch.where(held_back, plain - penalty * score_range(plain), plain)
        return choose(scores, ranking, self.top_k, state.available)
