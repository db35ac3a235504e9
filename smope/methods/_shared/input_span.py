"""The directions in which a layer's inputs lie: those of earlier tasks, and new ones.

A gradient of a linear layer's weight lies in the span of the layer's inputs, so what changes the
weight only orthogonally to the inputs of earlier tasks leaves their outputs as they were (gradient
projection memory: Saha et al. 2021, arXiv 2103.09762).

Letters: B batch, N tokens, C width of the inputs, L layers, r directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smope.distributed import collectives
from smope.experts.shared import SharedModules
from smope.methods._shared.class_gaussians import in_float64
from smope.methods.base import Batches, Method


def input_products(method: Method, layers: Sequence[SharedModules], batches: Batches) -> Tensor:
    """The sum of x·xᵀ over all inputs x that layers get from a task's images.

    Each image counts once, through the evaluation transform, and in all processes together.

    Args:
        method: computes features of the images.
        layers: L layers that read tokens (B, N, C).
        batches: the argument of Method.prepare_task or end_task.

    Returns:
        (L, C, C) in float64.
    """
    sums: dict[int, Tensor] = {}

    def observer(number: int) -> Callable[[Tensor], None]:
        def add(x: Tensor) -> None:
            products = _products(x.detach().flatten(0, 1))
            sums[number] = sums[number] + products if number in sums else products

        return add

    for number, layer in enumerate(layers):
        layer.observer = observer(number)
    try:
        for images, _ in batches("plain"):
            method.features(images)
    finally:
        for layer in layers:
            layer.observer = None
    return collectives.summed(torch.stack([sums[number] for number in range(len(layers))]))


def _products(rows: Tensor) -> Tensor:
    """rows (n, C) -> rowsᵀ·rows (C, C) in float64, computed in float32 at least."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    with torch.autocast(rows.device.type, enabled=False):
        return in_float64(rows.T @ rows)


def leading_directions(products: Tensor, span: Tensor, rank: int) -> Tensor:
    """The strongest directions of a task's inputs that are orthogonal to a span.

    Args:
        products: G, the sum of x·xᵀ over inputs, (C, C).
        span: P, the projection onto the span, (C, C).
        rank: r.

    Returns:
        The first left singular vectors of G - P·G, as orthonormal rows (r, C).
    """
    return _left_singular(products - span @ products)[1][:, :rank].T


def grown_span(products: Tensor, span: Tensor, share: float) -> Tensor:
    """A span with as many directions of a task's inputs as it needs to hold a share of them.

    The fewest left singular vectors of R = G - P·G are added, those of the largest values first,
    such that |P·G|² and the squares of these values are together at least share · |G|² (Frobenius
    norms).

    Args:
        products: G, the sum of x·xᵀ over inputs, (C, C).
        span: P, the projection onto the span so far, (C, C).
        share: between 0 and 1.

    Returns:
        The projection onto the larger span, (C, C).
    """
    squares, directions = _left_singular(products - span @ products)
    left_over = squares.flip(0).cumsum(0).flip(0)  # before a direction is added, itself included
    added = directions[:, left_over > (1 - share) * products.square().sum()]
    return span + added @ added.T


def _left_singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The squared singular values (C,) of a matrix (C, n), the largest first, and their left
    singular vectors (C, C).
    """
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return squares.flip(0).clamp(min=0), vectors.flip(1)
