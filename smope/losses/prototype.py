"""Losses that keep the routing of old images stable: old keys stand for the queries of old images.

The keys of frequently used experts, as they were before the task, are the prototypes. Each should
keep choosing the experts that it chose then. Source: Le et al. 2026 (arXiv 2509.24483): its
formula, and what the authors' code computes instead.

Both losses cost P·E·D multiplications in each block and head, whatever the batch. Their gradients
cost the same and are computed together with the values, a few heads at a time, so that no (P, E)
matrix is kept for the backward pass.

Shapes: L prompted blocks, H heads, E experts, P prototypes, K chosen experts, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = 2**22  # scores in the works: 16 MB in float32


@dataclass(frozen=True)
class Prototypes:
    """The prototypes of a task, which stay the same throughout it.

    Attributes:
        rows: (L, H, P, D), the frequent old keys; heads with fewer than P are padded.
        targets: (L, H, P, K), the K experts with the best old keys for each prototype.
        weights: (L, H, P), 1 / number of frequent keys of the head; 0 for padding.
    """

    rows: Tensor
    targets: Tensor
    weights: Tensor


@torch.no_grad()
def find_prototypes(old_keys: Tensor, frequent: Tensor, top_k: int) -> Prototypes:
    """The prototypes among the keys from before a task.

    Args:
        old_keys: (L, H, E, D).
        frequent: (L, H, E) bool, the experts that earlier tasks rely on.
        top_k: K.
    """
    number = frequent.sum(-1, keepdim=True)
    order = (
        frequent.to(torch.uint8)
        .sort(dim=-1, descending=True, stable=True)
        .indices[..., : int(number.max())]
    )
    rows = old_keys.gather(2, order.unsqueeze(-1).expand(-1, -1, -1, old_keys.shape[-1]))
    targets = order.new_empty(*order.shape, top_k)
    for part in _parts(rows, old_keys):
        nearest_keys = (
            (rows.flatten(0, 1)[part] @ old_keys.flatten(0, 1)[part].mT).topk(top_k, dim=-1).indices
        )
        targets.flatten(0, 1)[part] = nearest_keys
    weights = frequent.gather(-1, order).to(old_keys.dtype) / number.clamp(min=1)
    return Prototypes(rows, targets, weights)


def prototype_loss(keys: Tensor, prototypes: Prototypes) -> Tensor:
    """The authors' code: cross-entropy of each prototype's scores towards each of its K targets.

    Args:
        keys: (L, H, E, D), the present keys.
        prototypes: Those of the task.

    Returns:
        A scalar: mean over the prototypes of a head, sum over blocks, heads and targets.
    """
    return _Answers.apply(keys, prototypes, _cross_entropies)


def prototype_mass_loss(keys: Tensor, prototypes: Prototypes) -> Tensor:
    """The paper's formula: minus the softmax of the K keys that each prototype scores best.

    Args:
        keys: (L, H, E, D), the present keys.
        prototypes: Those of the task.

    Returns:
        A scalar: mean over the prototypes of a head, sum over blocks, heads and the K keys.
    """
    return _Answers.apply(keys, prototypes, _masses)


def _cross_entropies(scores: Tensor, targets: Tensor) -> Tensor:
    return targets.shape[-1] * scores.logsumexp(-1) - scores.gather(-1, targets).sum(-1)


def _masses(scores: Tensor, targets: Tensor) -> Tensor:
    return -scores.softmax(-1).topk(targets.shape[-1], dim=-1).values.sum(-1)


class _Answers(torch.autograd.Function):
    """The weighted sum over prototypes of function(scores (n, P, E), targets (n, P, K)), (n, P)."""

    @staticmethod
    def forward(
        ctx: Any, keys: Tensor, prototypes: Prototypes, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        rows, targets, weights = (
            x.flatten(0, 1) for x in (prototypes.rows, prototypes.targets, prototypes.weights)
        )
        total, gradient = keys.new_zeros(()), torch.zeros_like(keys)
        # Outside autocast, because rounding could change which expert is best.
        with torch.autocast(keys.device.type, enabled=False):
            for part in _parts(prototypes.rows, keys):
                leaf = keys.flatten(0, 1)[part].detach().requires_grad_()
                with torch.enable_grad():
                    value = (weights[part] * function(rows[part] @ leaf.mT, targets[part])).sum()
                gradient.flatten(0, 1)[part] = torch.autograd.grad(value, leaf)[0]
                total += value.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * ctx.saved_tensors[0], None, None


def _parts(rows: Tensor, keys: Tensor) -> list[slice]:
    """Slices of the flattened blocks and heads, so that each has at most AT_ONCE scores."""
    heads, scores = keys.shape[0] * keys.shape[1], max(1, rows.shape[2] * keys.shape[2])
    step = max(1, AT_ONCE // scores)
    return [slice(start, start + step) for start in range(0, heads, step)]
