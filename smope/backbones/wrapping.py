"""Wrappers round the attention of a timm ViT's blocks: how they get in, and how they come out
without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from timm.models.vision_transformer import Attention, VisionTransformer  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from smope.errors import UserError


class AttentionWrapper(nn.Module):
    """Stands where a block's `attention` (frozen, untouched) stood; a subclass says in `attended`
    what it computes.
    """

    attention: Attention

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        if attn_mask is not None or is_causal:
            raise UserError(
                "attn_mask / is_causal: a block with prompts attends to all tokens; pass neither"
            )
        return self.attended(x)

    def attended(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        raise TypeError(f"{type(self).__name__} does not define attended(x)")


W = TypeVar("W", bound=AttentionWrapper)


def plain_attention(attention: object, where: str) -> Attention:
    """`attention` if prompts can join it, else UserError; `where` names it in the message."""
    if type(attention) is not Attention:
        raise UserError(
            f"backbone: {where} is a {type(attention).__name__}; prompts need timm's plain "
            f"Attention (one qkv "
            "projection, softmax over all tokens, no rotary positions); choose a plain ViT such "
            "as vit_base_patch16_224"
        )
    return attention


def wrap(
    vit: VisionTransformer,
    blocks: Sequence[int],
    make: Callable[[Attention], W],
    key: str = "method.blocks",
) -> list[W]:
    """Wrap the attention of each listed block of a timm ViT; returns the wrappers in the order of
    `blocks`.

    make(attention) builds one wrapper; `key` is what lists the blocks, for messages. UserError for
    a block that the ViT does not have, one named twice or wrapped already, or an attention that
    cannot be wrapped; then nothing is changed.
    """
    depth = len(vit.blocks)
    if len(set(blocks)) != len(blocks) or any(not 0 <= block < depth for block in blocks):
        raise UserError(
            f"{key} must be different numbers in 0..{depth - 1} (the backbone has {depth} "
            f"blocks), got {list(blocks)}"
        )
    # A block of another kind (several attentions in parallel) has no `attn`: then it is what the
    # error names.
    found = [getattr(vit.blocks[block], "attn", vit.blocks[block]) for block in blocks]
    attentions = [
        plain_attention(item, f"the attention of block {n}")
        for n, item in zip(blocks, found, strict=True)
    ]
    wrappers = [make(attention) for attention in attentions]
    for block, wrapper in zip(blocks, wrappers, strict=True):
        vit.blocks[block].attn = wrapper
    return wrappers


def unwrap(vit: VisionTransformer) -> None:
    """Restore the original attention everywhere; the ViT then gives bit for bit what it gave
    before `wrap`.
    """
    for block in vit.blocks:
        if isinstance(block.attn, AttentionWrapper):
            block.attn = block.attn.attention
