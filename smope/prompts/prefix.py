"""Prefix tuning: extra keys and values that the tokens of an image attend to (Li and Liang 2021).

A prefix is set for one forward pass. It joins behind the frozen qkv projection, with the keys and
values of all H heads side by side, as in the published code of all methods here (see methods/).

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
    """The extra keys and values of each image in one block.

    Attributes:
        keys: (B, P, H·D); a prefix that all images share is expanded over B.
        values: (B, P, H·D).
        gate: A function of the prefix's logits (B, H, N, P), scale included, before the softmax.
    """

    keys: Tensor
    values: Tensor
    gate: Callable[[Tensor], Tensor] | None = None


class PrefixAttention(AttentionWrapper):
    """Attention over a prefix and the tokens.

    Row i = softmax([gate(q_i·prefix.keys·scale), q_i·k_j·scale for all tokens j]) · [values; v].
    Without a prefix the result equals that of the unwrapped block, bit for bit.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__(attention)
        self.prefix: Prefix | None = None

    @property
    def width(self) -> int:
        """H·D, the width of a prompt."""
        return self.attention.num_heads * self.attention.head_dim

    def attended(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
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
    """Attention written out, because no fused kernel takes a gate. `q` is already scaled."""
    of_prefix = gate(q @ keys.transpose(-2, -1))
    logits = torch.cat([of_prefix, q @ k.transpose(-2, -1)], dim=-1)
    return logits.softmax(-1).to(values.dtype) @ values


@contextmanager
def prefixed(
    wrappers: Sequence[PrefixAttention], prefixes: Sequence[Prefix], *, keep: bool = False
) -> Iterator[None]:
    """Set the prefixes of a forward pass inside a `with` block.

    Args:
        wrappers: The wrapped attention of each prompted block.
        prefixes: One for each wrapper.
        keep: Leave the prefixes in place afterwards, because the backward pass runs the blocks
            again. The next pass replaces them.
    """
    for wrapper, prefix in zip(wrappers, prefixes, strict=True):
        wrapper.prefix = prefix
    try:
        yield
    finally:
        if not keep:
            clear(wrappers)


def clear(wrappers: Sequence[PrefixAttention]) -> None:
    """Remove the prefixes."""
    for wrapper in wrappers:
        wrapper.prefix = None


def prefixes(rows: Tensor) -> list[Prefix]:
    """The prefixes of the L blocks, from their keys and values `rows` (L, 2, B, P, H·D)."""
    return [Prefix(keys, values) for keys, values in rows]
