"""The best K experts by standard score: how far an image's score lies above what is usual for the
expert.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from smope.declare.ranges import AtLeast, Range
from smope.routers.base import ExpertState, Routing, choose, proxy_scores
from smope.routers.running_moments import RunningMoments


class Standardised(RunningMoments):
    """Ranks experts by (score - mean) / standard deviation, of that expert's scores over images.

    Mean queries of a head have a large part in common, which lifts the same experts for every
    image, and an expert with a long key has scores that spread further than others. Both are taken
    away. A score is the product of key and query, so its mean and variance follow from those of the
    queries: with mean m and covariance C of the queries, k·m and kᵀCk for a key k. They are exact
    for the keys of the moment, however fast these learn. Remembered are m and the second moment of
    queries.

    Args:
        top_k: K, how many experts are chosen.
        momentum, next_task: As in running_moments.RunningMoments.
        scale: whether to divide by the standard deviation.
    """

    mean: Tensor
    second: Tensor

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        momentum: Annotated[float, Range(0, 1)] = 0.95,
        scale: bool = True,
        next_task: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__(top_k, momentum, next_task)
        self.scale = scale

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: mean (H, D), second moment (H, D, D), and the steps they saw."""
        self.remember(
            mean=torch.zeros(num_heads, head_dim),
            second=torch.eye(head_dim).repeat(num_heads, 1, 1),
        )

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`; scores enter the softmax as they are."""
        scores = proxy_scores(query, keys)
        if self.training:
            self._collect(query.detach().to(keys.dtype))
        ranking = self._standard(scores.detach(), keys.detach())
        return choose(scores, ranking, self.top_k, state.available)

    def _collect(self, query: Tensor) -> None:
        with torch.autocast(query.device.type, enabled=False):
            second = torch.einsum("bhi,bhj->hij", query, query)
        self.collect(len(query), mean=query.sum(0), second=second)

    def _standard(self, scores: Tensor, keys: Tensor) -> Tensor:
        with torch.autocast(keys.device.type, enabled=False):
            centred = scores - torch.einsum("hed,hd->he", keys, self.mean)
            if not self.scale:
                return centred
            covariance = self.second - self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2)
            variance = torch.einsum("hei,hij,hej->he", keys, covariance, keys)
            return centred * variance.clamp(min=1e-12).rsqrt()
