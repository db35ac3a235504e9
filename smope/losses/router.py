"""Losses that make each image's chosen experts stand out from the rest.

Shapes: L prompted blocks, B batch, H heads, E experts, K chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smope.routers.base import Routing, score_range


def _stack(routings: list[Routing]) -> tuple[Tensor, Tensor]:
    return torch.stack([r.scores for r in routings]), torch.stack([r.expert_ids for r in routings])


def router_loss(routings: list[Routing], epsilon: float) -> Tensor:
    """The authors' program: cross-entropy towards each chosen expert, the others lifted by a
    margin.

    scores' = scores + epsilon · range · [not chosen]; the range carries no gradient. -log
    softmax(scores') of the chosen experts, mean over the batch, summed over blocks, heads and
    chosen experts. Routings of L blocks -> scalar.
    """
    scores, expert_ids = _stack(routings)
    chosen = scores.gather(-1, expert_ids)
    lifted = (scores + epsilon * score_range(scores)).scatter(-1, expert_ids, chosen)
    return (chosen.shape[-1] * lifted.logsumexp(-1).sum() - chosen.sum()) / scores.shape[1]


def router_mass_loss(routings: list[Routing]) -> Tensor:
    """The paper's formula: minus the softmax mass of the chosen experts, no log and no margin.

    Mean over the batch, summed over blocks and heads. Routings of L blocks -> scalar.
    """
    scores, expert_ids = _stack(routings)
    return -scores.softmax(-1).gather(-1, expert_ids).sum() / scores.shape[1]
