"""Putting prompt experts into the blocks of a ViT, and taking them out again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from timm.models.vision_transformer import Attention, VisionTransformer  # pyright: ignore[reportPrivateImportUsage]

from smope.errors import UserError
from smope.experts.attention import PromptedAttention, plain_attention
from smope.experts.bank import ExpertBank
from smope.routers.base import Router


def attach(
    vit: VisionTransformer, blocks: Sequence[int], router: Router, make_bank: Callable[[Attention], ExpertBank]
) -> list[PromptedAttention]:
    """Wrap the attention of each listed block of a timm ViT; returns the wrappers in the order of `blocks`.

    make_bank(attention) -> ExpertBank builds the experts of one block; each block gets its own copy of `router`.
    UserError for a block that the ViT does not have, one named twice or wrapped already, or an attention that cannot
    be wrapped; then nothing is changed.
    """
    depth = len(vit.blocks)
    if len(set(blocks)) != len(blocks) or any(not 0 <= block < depth for block in blocks):
        raise UserError(
            f"method.blocks must be different numbers in 0..{depth - 1} (the backbone has {depth} blocks), "
            f"got {list(blocks)}"
        )
    # A block of another kind (several attentions in parallel) has no `attn`: then it is what the error names.
    found = [getattr(vit.blocks[block], "attn", vit.blocks[block]) for block in blocks]
    attentions = [plain_attention(item, f"the attention of block {n}") for n, item in zip(blocks, found, strict=True)]
    wrappers = [PromptedAttention(attention, make_bank(attention), copy.deepcopy(router)) for attention in attentions]
    for block, wrapper in zip(blocks, wrappers, strict=True):
        vit.blocks[block].attn = wrapper
    return wrappers


def detach(vit: VisionTransformer) -> None:
    """Restore the original attention everywhere; the ViT then gives bit for bit what it gave before `attach`."""
    for block in vit.blocks:
        if isinstance(block.attn, PromptedAttention):
            block.attn = block.attn.attention
