"""Prefix tuning: keys and values that an image's tokens attend to beside themselves, set for one
forward pass.

In all the published programs that are followed here (see methods/), prompts join behind the frozen
qkv projection, as keys and values of all H heads side by side.

Shapes: B images, N tokens, P prefix length, H heads, D head width, L prompted blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import Attention  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from smope.backbones.attention import attend, heads, in_products, project
from smope.backbones.wrapping import AttentionWrapper


@dataclass(frozen=True)
class Prefix:
    """What each image has beside its tokens in one block.

    keys, values (B, P, H·D): every image its own; expand what all images share.
    gate:                     what happens to the prefix's logits (B, H, N, P), scale included,
                              before the softmax.
    """

    keys: Tensor
    values: Tensor
    gate: Callable[[Tensor], Tensor] | None = None


class PrefixAttention(AttentionWrapper):
    """Wraps `attention`: row i = softmax([gate(q_i·prefix.keys·scale), q_i·k_j·scale for all
    tokens]) · [values; v].

    Without a prefix it computes bit for bit what the block computes without its wrapper.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__(attention)
        self.prefix: Prefix | None = None

    @property
    def width(self) -> int:
        """H·D, the width of a prompt."""
        return self.attention.num_heads * self.attention.head_dim

    def attended(self, x: Tensor) -> Tensor:
        attention, prefix = self.attention, self.prefix
        if prefix is None and not in_products(x):
            return attention(x)
        q, k, v = heads(attention, x)
        if prefix is None:
            return project(attention, x, attend(q, k, v, attention.scale))
        keys, values = (
            rows.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).to(v.dtype)
            for rows in (prefix.keys, prefix.values)
        )
        if prefix.gate is None:
            out = attend(
                q, torch.cat([keys, k.to(v.dtype)], 2), torch.cat([values, v], 2), attention.scale
            )
        else:
            out = _gated(q * attention.scale, keys, k, torch.cat([values, v], 2), prefix.gate)
        return project(attention, x, out)


def _gated(
    q: Tensor, keys: Tensor, k: Tensor, values: Tensor, gate: Callable[[Tensor], Tensor]
) -> Tensor:
    """Attention in so many words: a gate depends on row and prefix, which no fused kernel knows. q
    is scaled.
    """
    logits = torch.cat([gate(q @ keys.mT), q @ k.mT], dim=-1)
    return logits.softmax(-1).to(values.dtype) @ values


@contextmanager
def prefixed(
    wrappers: Sequence[PrefixAttention], prefixes: Sequence[Prefix], *, keep: bool = False
) -> Iterator[None]:
    """`prefixes` for the forward pass inside, one a wrapper.

    keep: leave them there, for blocks that are run again in the backward pass; the next pass takes
    them away.
    """
    for wrapper, prefix in zip(wrappers, prefixes, strict=True):
        wrapper.prefix = prefix
    try:
        yield
    finally:
        if not keep:
            clear(wrappers)


def clear(wrappers: Sequence[PrefixAttention]) -> None:
    """No prefix any more."""
    for wrapper in wrappers:
        wrapper.prefix = None


def prefixes(rows: Tensor) -> list[Prefix]:
    """rows (L, 2, B, P, H·D), keys and values of each block -> the L prefixes."""
    return [Prefix(keys, values) for keys, values in rows]
