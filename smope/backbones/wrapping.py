"""Wrappers around the attention of a timm ViT's blocks, and how they are put in and taken out.

Shapes: B batch, N tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from timm.models.vision_transformer import Attention, VisionTransformer  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from smope.errors import UserError


class AttentionWrapper(nn.Module):
    """Replaces the `attention` of a block and keeps it unchanged; subclasses define `attended`."""

    attention: Attention

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """x (B, N, C) -> (B, N, C). UserError for the masks that timm's blocks may pass."""
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
    """`attention` itself if prompts can join it.

    Args:
        attention: The module of a block.
        where: Its place, for the error message.

    Raises:
        UserError: It is not timm's plain Attention.
    """
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
    """Wrap the attention of some blocks of a timm ViT.

    Args:
        vit: Changed in place.
        blocks: Numbers of the blocks, from 0.
        make: Builds the wrapper of an attention.
        key: The configuration key that lists the blocks, for error messages.

    Returns:
        The wrappers, in the order of `blocks`.

    Raises:
        UserError: A block does not exist, is listed twice, is already wrapped, or has an attention
            that cannot be wrapped. The ViT is then unchanged.
    """
    depth = len(vit.blocks)
    if len(set(blocks)) != len(blocks) or any(not 0 <= block < depth for block in blocks):
        raise UserError(
            f"{key} must be different numbers in 0..{depth - 1} (the backbone has {depth} "
            f"blocks), got {list(blocks)}"
        )
    # Blocks of other kinds, such as timm's parallel ones, have no `attn`: the error names them.
    attentions = [
        plain_attention(
            getattr(vit.blocks[block], "attn", vit.blocks[block]), f"the attention of block {block}"
        )
        for block in blocks
    ]
    wrappers = [make(attention) for attention in attentions]
    for block, wrapper in zip(blocks, wrappers, strict=True):
        vit.blocks[block].attn = wrapper
    return wrappers


def unwrap(vit: VisionTransformer) -> None:
    """Put the original attention back; outputs are then as before `wrap`, bit for bit."""
    for block in vit.blocks:
        if isinstance(block.attn, AttentionWrapper):
            block.attn = block.attn.attention


def is_wrapped(vit: VisionTransformer) -> bool:
    """Whether the attention of a block is wrapped."""
    return any(isinstance(getattr(block, "attn", None), AttentionWrapper) for block in vit.blocks)


@contextmanager
def without_wrappers(vit: VisionTransformer) -> Iterator[None]:
    """Outputs are as before `wrap`, bit for bit, within the context. The wrappers stay the same."""
    wrappers = {block: block.attn for block in vit.blocks}
    unwrap(vit)
    try:
        yield
    finally:
        for block, attention in wrappers.items():
            block.attn = attention
