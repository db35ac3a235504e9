"""The best K experts by score above their own average: a router that does not collapse.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from smope.declare.ranges import AtLeast, Range
from smope.routers.base import ExpertState, Router, Routing, choose, proxy_scores
from smope.routers.step_sum import StepSum


class Centred(Router):
    """Ranks experts by score minus that expert's running mean over training images.

    Mean queries of a head have a large part in common, which lifts the same experts for every
    image. What is left without it tells images apart. After each training step

        mean <- momentum · mean + (1 - momentum) · mean over the step's images,

    and after the first step, mean is that of its images. Evaluation leaves it as it is.

    Args:
        top_k: K, how many experts are chosen.
        momentum: Of the running mean.
        next_task: "keep": the mean carries on through the next task. "reset": the first step of a
            task replaces it.
    """

    learning_only = ("steps",)
    mean: Tensor
    steps: Tensor

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        momentum: Annotated[float, Range(0, 1)] = 0.95,
        next_task: Literal["keep", "reset"] = "keep",
    ) -> None:
        super().__init__(top_k)
        self.momentum = momentum
        self.next_task = next_task

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: mean (H, E), and the number of steps that it has seen."""
        self.register_buffer("mean", torch.zeros(num_heads, num_experts))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.step_sum = StepSum(num_heads, num_experts)

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`; scores enter the softmax without their mean subtracted."""
        scores = proxy_scores(query, keys)
        plain = scores.detach()
        if self.training:
            self.step_sum.add(plain.sum(0), len(plain))
        return choose(scores, plain - self.mean, self.top_k, state.available)

    def begin_task(self) -> None:
        if self.next_task == "reset":
            self.steps.zero_()

    @torch.no_grad()
    def end_step(self) -> None:
        taken = self.step_sum.take()
        if taken is None:
            return
        total, images = taken
        weight = torch.where(self.steps > 0, 1 - self.momentum, 1.0).to(self.mean.dtype)
        self.mean.lerp_((total / images).to(self.mean.dtype), weight)
        self.steps += 1

    def used(self, routing: Routing) -> Tensor:
        """The chosen experts, (B, H, K)."""
        return routing.expert_ids
