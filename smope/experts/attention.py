"""A frozen timm attention with prompt experts beside its tokens.

Shapes: B batch, N tokens (CLS included), H heads, D head width, E experts, K chosen experts, C =
H·D.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from timm.models.vision_transformer import Attention  # pyright: ignore[reportPrivateImportUsage] (its oldest home)
from torch import Tensor

from smope.backbones.attention import ExtraKey, attend, heads, project
from smope.backbones.wrapping import AttentionWrapper
from smope.experts.bank import ExpertBank
from smope.routers.base import Router, Routing
from smope.routers.dense import Dense


def as_one_key(routing: Routing, values: Tensor, scale: float) -> ExtraKey:
    """The chosen experts of each image and head as the single key that they amount to; values (H,
    E, D).
    """
    with torch.autocast(values.device.type, enabled=False):
        logits = routing.weights * scale
        share = torch.zeros_like(routing.scores).scatter(-1, routing.expert_ids, logits.softmax(-1))
        return ExtraKey(logits.logsumexp(-1), torch.einsum("bhe,hed->bhd", share, values))


class PromptedAttention(AttentionWrapper):
    """Wraps `attention` (frozen, untouched) and lets each image attend to its chosen experts as
    well.

    After a forward pass `routing` holds the decision, without gradient (see `recorded`). `dense`
    switches to all experts (warm-up). Without its wrapper the block computes bit for bit what it
    did before: see inject.detach.
    """

    bank: ExpertBank
    router: Router

    def __init__(self, attention: Attention, bank: ExpertBank, router: Router) -> None:
        super().__init__(attention)
        self.bank = bank
        self.router = router
        self.dense = False
        self.routing: Routing | None = None
        self._record: list[Routing] | None = None
        self._dense_router = Dense(router.top_k)

    def attended(self, x: Tensor) -> Tensor:
        attention = self.attention
        q, k, v = heads(attention, x)
        keys, values = self.bank()
        router = self._dense_router if self.dense else self.router
        routing = router(q.mean(dim=2, dtype=keys.dtype), keys, self.bank.state)
        self.routing = routing.detach()
        if self._record is not None:
            self._record.append(routing)
        extra = as_one_key(routing, values, attention.scale)
        return project(attention, x, attend(q, k, v, attention.scale, extra))


@contextmanager
def recorded(wrappers: Iterable[PromptedAttention]) -> Iterator[list[Routing]]:
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
