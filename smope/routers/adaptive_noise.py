"""SMoPE's router: the best K by proxy score, with the experts that earlier tasks rely on held
back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smope.routers.base import ExpertState, Router, Routing, choose, proxy_scores, score_range

UNUSED_PENALTY = (
    2.0  # in units of the score range: more than 1 puts an expert behind all unpenalised ones
)


class AdaptiveNoise(Router):
    """Ranks by scores minus a penalty in units of the image's own score range.

    Training:   epsilon for each expert flagged `frequent`, so that new tasks prefer free experts.
    Evaluation: 2 for each expert never used, which excludes it, unless `exclude_unused_experts` is
        false
                (the authors' final tables come from a reloaded model without counts, where nothing
                is excluded).
    Le et al. 2026 (arXiv 2509.24483) call it adaptive noise; it is deterministic, as in their
    program.
    """

    def __init__(
        self, top_k: int = 5, epsilon: float = 0.4, exclude_unused_experts: bool = True
    ) -> None:
        super().__init__(top_k, epsilon)
        self.exclude_unused_experts = exclude_unused_experts

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        scores = proxy_scores(query, keys)
        if self.training:
            penalty, held_back = self.epsilon, state.frequent
        elif self.exclude_unused_experts:
            penalty, held_back = UNUSED_PENALTY, state.counts == 0
        else:
            return choose(scores, scores, self.top_k)
        plain = scores.detach()
        return choose(
            scores, torch.where(held_back, plain - penalty * score_range(plain), plain), self.top_k
        )
