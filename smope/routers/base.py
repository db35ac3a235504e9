"""What every router takes and returns.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Routing:
    """The decision of one prompted block for one batch.

    Attributes:
        scores: (B, H, E), proxy scores of all experts, not scaled by 1/sqrt(D), with gradient.
        expert_ids: (B, H, K) int64, the chosen experts, best first.
        weights: (B, H, K), with which the chosen experts enter the softmax: their scores, unless
            the router has plain_weights = False.
    """

    scores: Tensor
    expert_ids: Tensor
    weights: Tensor

    def detach(self) -> Routing:
        """The same decision without its autograd graph."""
        return Routing(self.scores.detach(), self.expert_ids, self.weights.detach())


@dataclass(frozen=True)
class ExpertState:
    """What a router may know about the past use of its experts.

    Attributes:
        counts: (H, E) int64, for how many images so far each expert was among the best K.
        frequent: (H, E) bool, the experts that earlier tasks rely on.
    """

    counts: Tensor
    frequent: Tensor


def proxy_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Score of each expert for each image: the inner product of key and mean query.

    The "prompt-attention score aggregation" of Le et al. 2026. It is computed in the precision of
    the keys, outside autocast, because rounding to half precision can change the choice.

    Args:
        query: (B, H, D), the mean query over an image's tokens.
        keys: (H, E, D).

    Returns:
        (B, H, E), not scaled by 1/sqrt(D).
    """
    with torch.autocast(query.device.type, enabled=False):
        return torch.einsum("bhd,hed->bhe", query.to(keys.dtype), keys).contiguous()


def score_range(scores: Tensor) -> Tensor:
    """Largest minus smallest score per image and head, (B, H, E) -> (B, H, 1), without gradient."""
    smallest, largest = scores.detach().aminmax(dim=-1, keepdim=True)
    return largest - smallest


def choose(scores: Tensor, ranking: Tensor, top_k: int) -> Routing:
    """Choose the experts that rank highest.

    Args:
        scores: (B, H, E), which become the weights of the chosen experts.
        ranking: (B, H, E), the scores after penalties, by which experts are chosen.
        top_k: K.
    """
    expert_ids = ranking.detach().topk(top_k, dim=-1).indices
    return Routing(scores, expert_ids, scores.gather(-1, expert_ids))


class Router(nn.Module):
    """Chooses experts for each image and head. A router with `sparse = False` uses all of them.

    Each prompted block has a copy of the router. What a router learns or remembers is a Parameter
    or a buffer that `build` makes: parameters are trained with the experts, both are saved with
    them. In training, `forward` only collects what the images say (step_sum.py); memory changes in
    `end_step`, once an optimizer step, so that parts of a batch and several processes do the same
    as one batch in one process.

    `plain_weights = False` says that the weights are a function of the chosen experts' scores, not
    the scores themselves.

    Args:
        top_k: K, how many experts are chosen, counted as used, and targets of the prototype loss.
        epsilon: Margin of the router loss between chosen and other experts, in units of the score
            range; 0 for none.
    """

    sparse: bool = True
    plain_weights: bool = True

    def __init__(self, top_k: int, epsilon: float = 0.0) -> None:
        super().__init__()
        self.top_k = top_k
        self.epsilon = epsilon

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """Choose experts; `self.training` is true in training and false in evaluation.

        Args:
            query: (B, H, D), the mean query over an image's tokens.
            keys: (H, E, D), one key for each expert.
            state: The past use of the experts.
        """
        raise TypeError(
            f"{type(self).__name__} does not define forward(query, keys, state) -> Routing"
        )

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """Make parameters and buffers; called once, when a copy of the router joins its block.

        Args:
            num_heads: H.
            num_experts: E.
            head_dim: D.
        """

    def begin_task(self) -> None:
        """Called before the first step of every task but the first."""

    def end_step(self) -> None:
        """Called after each optimizer step, in all processes: here, what is remembered changes."""

    def used(self, routing: Routing) -> Tensor:
        """The K experts that count as used by each image, (B, H, K): the best by score, penalties
        aside, as the authors' program counts.
        """
        return routing.scores.topk(self.top_k, dim=-1).indices
