"""A frozen ViT's forward pass to its CLS feature: what timm computes, without what nobody reads.

The last block computes the CLS row alone: its keys and values need all tokens, its query,
projection and MLP one. With twelve blocks this saves 6.9 % of the multiplications of a ViT-B/16.
Attention is that of attention.py, in every block.

Only modules made of the parts known here are taken apart. Anything else, a block that somebody
observes with hooks included, is called as it is.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models.vision_transformer import (
    Attention,  # pyright: ignore[reportPrivateImportUsage]
    Block,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smope.backbones.attention import apart, attend, heads, project
from smope.backbones.held import is_linear, operands

VIT = {"patch_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "norm"}
HEAD = {"attn_pool", "fc_norm", "head_drop", "head", "head_dist"}  # behind the features
BLOCK = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
ATTENTION = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"}


def cls_features(
    vit: VisionTransformer,
    pixels: Tensor,
    *,
    recompute: bool = False,
    whole_last_block: bool = False,
) -> Tensor:
    """The CLS row of vit.forward_features(pixels), (B, C), in evaluation mode.

    recompute: keep only each block's input for the backward pass, and run the block again there.
    whole_last_block: compute rows that nobody reads as well, to count what it saves not to.
    """
    return cls_and_tokens(vit, pixels, recompute=recompute, whole_last_block=whole_last_block)[0]


def cls_and_tokens(
    vit: VisionTransformer,
    pixels: Tensor,
    *,
    recompute: bool = False,
    whole_last_block: bool = False,
) -> tuple[Tensor, Tensor]:
    """cls_features(), (B, C), and the tokens that enter the last block, (B, N, C)."""
    if type(vit).forward_features is not VisionTransformer.forward_features or not _made_of(
        vit, VIT | HEAD
    ):
        return _observed(vit, pixels)
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(pixels))))
    *blocks, last = vit.blocks
    for block in blocks:
        # Below the first block with anything to learn nothing is kept anyway.
        x = (
            checkpoint(run_block, block, x, use_reentrant=False)
            if recompute and x.requires_grad
            else run_block(block, x)
        )
    return vit.norm((run_block if whole_last_block else run_cls_row)(last, x))[:, 0], x


def _observed(vit: VisionTransformer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """cls_and_tokens() of a ViT that is not taken apart."""
    tokens: list[Tensor] = []
    observer = vit.blocks[-1].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    try:
        return vit.forward_features(pixels)[:, 0], tokens[-1]
    finally:
        observer.remove()


def run_block(block: Any, x: Tensor) -> Tensor:
    """block(x), (B, N, C) -> (B, N, C)."""
    if not takes_apart(block):
        return block(x)
    inner = block.norm1(x)
    attention = block.attn
    return _add(
        block, x, project(attention, inner, attend(*heads(attention, inner), attention.scale))
    )


def run_cls_row(block: Any, x: Tensor) -> Tensor:
    """block(x)[:, :1], (B, N, C) -> (B, 1, C)."""
    if (
        not takes_apart(block)
        or not is_linear(block.attn.qkv)
        or not _made_of(block.attn.qkv, set())
    ):
        return block(x)[:, :1]
    inner = block.norm1(x)
    attention = block.attn
    row = inner[:, :1]
    weight, bias = operands(attention.qkv)
    channels = len(weight) // 3
    q = F.linear(row, weight[:channels], None if bias is None else bias[:channels])
    kv = F.linear(inner, weight[channels:], None if bias is None else bias[channels:])
    q = q.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    k, v = apart(kv, 2, attention.num_heads)
    out = attend(attention.q_norm(q), attention.k_norm(k), v, attention.scale)
    return _add(block, x[:, :1], project(attention, row, out))


def _add(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of timm's Block, from its input and what its attention gave."""
    x = x + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def takes_apart(block: Any) -> bool:
    """Whether `block` is a timm Block round a timm Attention, with no part that this file does not
    know.
    """
    return (
        type(block) is Block
        and type(block.attn) is Attention
        and _made_of(block, BLOCK)
        and _made_of(block.attn, ATTENTION)
    )


def _made_of(module: nn.Module, parts: set[str]) -> bool:
    observed = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    # spelt out: torch 2.6 does not compile issuperset
    return not observed and all(name in parts for name in module._modules)
