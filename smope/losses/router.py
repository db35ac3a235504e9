"""Losses that raise the scores of each image's chosen experts above those of the others.

Source: Le et al. 2026 (arXiv 2509.24483): its formula, and what the authors' code computes instead.

Shapes: L prompted blocks, B batch, H heads, E experts, K chosen experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smope.routers.base import Routing, score_range


def _stack(routings: list[Routing]) -> tuple[Tensor, Tensor]:
    return torch.stack([r.scores for r in routings]), torch.stack([r.expert_ids for r in routings])


def router_loss(routings: list[Routing], epsilon: float) -> Tensor:
    """The authors' code: cross-entropy towards each chosen expert, with a margin for the others.

    scores' = scores + epsilon · range · [expert not chosen], where the range has no gradient. The
    loss is -log softmax(scores') of the chosen experts.

    Args:
        routings: One for each of L blocks.
        epsilon: The margin, in units of the score range.

    Returns:
        A scalar: mean over the batch, sum over blocks, heads and chosen experts.
    """
    scores, expert_ids = _stack(routings)
    chosen = scores.gather(-1, expert_ids)
    lifted = (scores + epsilon * score_range(scores)).scatter(-1, expert_ids, chosen)
    return (chosen.shape[-1] * lifted.logsumexp(-1).sum() - chosen.sum()) / scores.shape[1]


def router_mass_loss(routings: list[Routing]) -> Tensor:
    """The paper's formula: minus the sum of the chosen experts' softmax; no logarithm, no margin.

    Returns a scalar: mean over the batch, sum over the L blocks of `routings` and over heads.
    """
    scores, expert_ids = _stack(routings)
    return -scores.softmax(-1).gather(-1, expert_ids).sum() / scores.shape[1]
