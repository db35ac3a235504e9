"""What a wrapper with experts does wherever they are: it chooses, and remembers what it chose.

Shapes: B batch, H heads, N tokens, D head width, E experts of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from smope.backbones.attention import exporting
from smope.backbones.wrapping import Wrapper
from smope.errors import UserError
from smope.experts.bank import ExpertBank
from smope.routers.base import Router, Routing


class RoutedWrapper(Wrapper):
    """Wraps `layer` (frozen, untouched), whose images use experts of `bank` that `router` chooses.

    After a forward pass `routing` holds the decision, without gradient (see `recorded`). `dense`
    switches to all experts (warm-up).
    """

    def __init__(self, layer: nn.Module, bank: ExpertBank, router: Router) -> None:
        super().__init__(layer)
        self.bank = bank
        self.router = router
        self.dense = False
        self.routing: Routing | None = None
        self._record: list[Routing] | None = None

    @property
    def scale(self) -> float:
        """1/sqrt(D), by which scores are multiplied in the softmax."""
        return self.bank.keys.shape[-1] ** -0.5

    def route(self, tokens: Tensor, keys: Tensor) -> Routing:
        """Choose experts, by the mean over tokens unless the router reads them, and remember the
        decision.

        Args:
            tokens: (B, H, N, D).
            keys: (H, E, D), those of the bank.
        """
        router = self.router
        if exporting() and not router.exports:
            raise UserError(
                f"router={router.name} cannot be exported: no exporter knows what it needs to "
                f"choose; train with another router"
            )
        reads_all = router.reads_tokens
        query = tokens.to(keys.dtype) if reads_all else _mean_query(tokens, keys.dtype)
        routing = router.dense(query, keys) if self.dense else router(query, keys, self.bank.state)
        if not exporting():  # an exporter's tensors are no numbers, and nobody may keep them
            self.routing = routing.detach()
        if self._record is not None:
            self._record.append(routing)
        return routing


def _mean_query(q: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean over tokens, (B, H, N, D) -> (B, H, D) in `dtype`."""
    return q.mean(dim=2, dtype=dtype) if exporting() else _MeanQuery.apply(q, dtype)


class _MeanQuery(torch.autograd.Function):
    """q.mean(dim=2) in `dtype`, (B, H, N, D) -> (B, H, D). All tokens have the same gradient, which
    is not written out for each of them in `dtype`, as autograd would, but rounded once and shown to
    all.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.shape, ctx.dtype = q.shape, q.dtype
        return q.mean(dim=2, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (grad / ctx.shape[2]).to(ctx.dtype).unsqueeze(2).expand(ctx.shape), None


@contextmanager
def recorded(wrappers: Iterable[RoutedWrapper]) -> Iterator[list[Routing]]:
    """The decisions of the forward pass inside, with gradient; a wrapper by itself keeps them
    without.
    """
    routings: list[Routing] = []
    for wrapper in wrappers:
        wrapper._record = routings
    try:
        yield routings
    finally:
        for wrapper in wrappers:
            wrapper._record = None
