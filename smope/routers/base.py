"""What every router takes and gives.

Shapes: B batch, H heads, E experts a head, K chosen experts, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Routing:
    """The decision of one prompted block for one batch.

    scores:     (B, H, E) proxy scores of all experts, unscaled, with gradient.
    expert_ids: (B, H, K) int64, the chosen experts, best first.
    weights:    (B, H, K) unscaled scores with which the chosen experts enter the softmax.
    """

    scores: Tensor
    expert_ids: Tensor
    weights: Tensor

    def detach(self) -> Routing:
        """The same decision without its graph."""
        return Routing(self.scores.detach(), self.expert_ids, self.weights.detach())


@dataclass(frozen=True)
class ExpertState:
    """What a router may know of its experts' past.

    counts:   (H, E) int64, how often each expert was among the best K of an image so far.
    frequent: (H, E) bool, experts that earlier tasks rely on.
    """

    counts: Tensor
    frequent: Tensor


def proxy_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Score of each expert for each image: its key times the mean query of all tokens.

    query (B, H, D), keys (H, E, D) -> (B, H, E), unscaled. SMoPE's "prompt-attention score
    aggregation". Computed in the keys' precision, outside autocast: a half-precision score can
    choose another expert.
    """
    with torch.autocast(query.device.type, enabled=False):
        return torch.einsum("bhd,hed->bhe", query.to(keys.dtype), keys).contiguous()


def score_range(scores: Tensor) -> Tensor:
    """Largest minus smallest score of an image and head, (B, H, E) -> (B, H, 1), without gradient."""
    least, most = scores.detach().aminmax(dim=-1, keepdim=True)
    return most - least


def choose(scores: Tensor, ranking: Tensor, top_k: int) -> Routing:
    """Take the `top_k` experts that rank highest; their unpenalised scores are their weights."""
    expert_ids = ranking.detach().topk(top_k, dim=-1).indices
    return Routing(scores, expert_ids, scores.gather(-1, expert_ids))


class Router(nn.Module):
    """Chooses experts from one query a head.

    `top_k` is K, also for counting use and for prototype targets. `epsilon` is the margin that the
    router loss puts between chosen and other experts (0: none). A router with `sparse = False` uses
    every expert.
    """

    sparse: bool = True

    def __init__(self, top_k: int, epsilon: float = 0.0) -> None:
        super().__init__()
        self.top_k = top_k
        self.epsilon = epsilon

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """query (B, H, D), keys (H, E, D) -> Routing.

        `self.training` tells training from evaluation.
        """
        raise TypeError(
            f"{type(self).__name__} does not define forward(query, keys, state) -> Routing"
        )
