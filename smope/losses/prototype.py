"""Losses that keep the keys of much-used experts answering as they did: old keys serve as prototypes of old queries.

Shapes: L prompted blocks, H heads, E experts, K chosen, D head width.
"""

from __future__ import annotations

from torch import Tensor


def _mean_over_frequent(value: Tensor, frequent: Tensor) -> Tensor:
    """Mean of value (L, H, E) over the frequent experts of each block and head, summed; 0 where there are none."""
    mask = frequent.to(value.dtype)
    return ((value * mask).sum(-1) / mask.sum(-1).clamp(min=1)).sum()


def prototype_loss(keys: Tensor, old_keys: Tensor, frequent: Tensor, top_k: int) -> Tensor:
    """The authors' program: cross-entropy of each frequent old key towards the K experts it chose among the old keys.

    keys, old_keys (L, H, E, D), frequent (L, H, E) bool -> scalar: mean over frequent experts, summed over blocks,
    heads and the K targets.
    """
    targets = (old_keys @ old_keys.mT).topk(top_k, dim=-1).indices
    log_mass = (old_keys @ keys.mT).log_softmax(-1).gather(-1, targets)
    return -_mean_over_frequent(log_mass.sum(-1), frequent)


def prototype_mass_loss(keys: Tensor, old_keys: Tensor, frequent: Tensor, top_k: int) -> Tensor:
    """The paper's formula: minus the softmax mass of the K current experts that each frequent old key scores best."""
    mass = (old_keys @ keys.mT).softmax(-1).topk(top_k, dim=-1).values
    return -_mean_over_frequent(mass.sum(-1), frequent)
