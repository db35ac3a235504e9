"""The best K experts by score above their own average: a router that does not collapse.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from smope.declare.ranges import AtLeast, Range
from smope.routers.base import ExpertState, Routing, choose, proxy_scores
from smope.routers.running_moments import RunningMoments


class Centred(RunningMoments):
    """Ranks experts by score minus that expert's running mean over training images.

    Mean queries of a head have a large part in common, which lifts the same experts for every
    image. What is left without it tells images apart.

    Args:
        top_k: K, how many experts are chosen.
        momentum, next_task: As in running_moments.RunningMoments.
    """

    mean: Tensor

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        momentum: Annotated[float, Range(0, 1)] = 0.95,
        next_task: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__(top_k, momentum, next_task)

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: mean (H, E), and the number of steps that it has seen."""
        self.remember(mean=torch.zeros(num_heads, num_experts))

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`; scores enter the softmax without their mean subtracted."""
        scores = proxy_scores(query, keys)
        plain = scores.detach()
        if self.training:
            self.collect(len(plain), mean=plain.sum(0))
        return choose(scores, plain - self.mean, self.top_k, state.available)
