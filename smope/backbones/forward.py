"""The forward pass of a frozen ViT to its CLS feature: what timm computes, without unused rows.

The last block computes only its CLS row. Its keys and values need all tokens, but its query,
projection and MLP need one. With twelve blocks this saves 6.9 % of the multiplications of a
ViT-B/16. Attention is computed by attention.py in every block.

Only modules that consist of the parts listed here are taken apart. All others, including blocks
with hooks, are called as a whole.

Shapes: B batch, N tokens, C width.
"""

from __future__ import annotations

from typing import Any

import torch
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
from smope.backbones.wrapping import BlockWrapper, Wrapper

VIT = {"patch_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "norm"}
HEAD = {"attn_pool", "fc_norm", "head_drop", "head", "head_dist"}  # after the features
BLOCK = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
ATTENTION = {"qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"}


def cls_features(
    vit: VisionTransformer,
    pixels: Tensor,
    *,
    recompute: bool = False,
    whole_last_block: bool = False,
) -> Tensor:
    """The CLS row of vit.forward_features(pixels), in evaluation mode.

    Args:
        vit: A timm ViT with a CLS token.
        pixels: (B, 3, S, S), normalised.
        recompute: Keep only the input of each block for the backward pass, which runs it again.
        whole_last_block: Compute the unused rows of the last block too, to count what they cost.

    Returns:
        (B, C), after the ViT's norm.
    """
    return cls_and_tokens(vit, pixels, recompute=recompute, whole_last_block=whole_last_block)[0]


def cls_and_tokens(
    vit: VisionTransformer,
    pixels: Tensor,
    *,
    recompute: bool = False,
    whole_last_block: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `cls_features`; returns (B, C), and the tokens that enter the last block, (B, N, C)."""
    if not _runs_in_parts(vit):
        return _observed(vit, pixels)
    x = _embedded(vit, pixels)
    *blocks, last = vit.blocks
    for block in blocks:
        # Nothing is kept below the first block that learns, so there is nothing to recompute.
        if recompute and x.requires_grad:
            x = checkpoint(run_block, block, x, use_reentrant=False)
        else:
            x = run_block(block, x)
    rows = run_block(last, x) if whole_last_block else run_cls_row(last, x)
    return vit.norm(rows)[:, 0], x


def cls_of_last_blocks(
    vit: VisionTransformer, pixels: Tensor, count: int, *, whole_last_block: bool = False
) -> Tensor:
    """The CLS row that each of the last blocks gives, before the ViT's norm.

    Args:
        vit: A timm ViT with a CLS token.
        pixels: (B, 3, S, S), normalised.
        count: How many blocks; at most as many as there are.
        whole_last_block: Compute the unused rows of the last block too, to count what they cost.

    Returns:
        (B, count, C), in the order of the blocks.
    """
    if not _runs_in_parts(vit):
        return _observed_cls(vit, pixels, count)
    x = _embedded(vit, pixels)
    *blocks, last = vit.blocks
    rows = []
    for block in blocks:
        x = run_block(block, x)
        rows.append(x[:, 0])
    x = run_block(last, x) if whole_last_block else run_cls_row(last, x)
    return torch.stack([*rows, x[:, 0]][-count:], dim=1)


def _runs_in_parts(vit: VisionTransformer) -> bool:
    """Whether this file may run the ViT block by block."""
    own = type(vit).forward_features is not VisionTransformer.forward_features
    return not own and _made_of(vit, VIT | HEAD)


def _embedded(vit: VisionTransformer, pixels: Tensor) -> Tensor:
    """The tokens that enter the first block, (B, N, C)."""
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(pixels))))


def _observed_cls(vit: VisionTransformer, pixels: Tensor, count: int) -> Tensor:
    """As `cls_of_last_blocks`, for a ViT that is called as a whole."""
    rows: list[Tensor] = []
    observers = [
        block.register_forward_hook(lambda _, __, out: rows.append(out[:, 0]))
        for block in vit.blocks[-count:]
    ]
    try:
        vit.forward_features(pixels)
    finally:
        for observer in observers:
            observer.remove()
    return torch.stack(rows, dim=1)


def _observed(vit: VisionTransformer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """As `cls_and_tokens`, for a ViT that is called as a whole."""
    tokens: list[Tensor] = []
    observer = vit.blocks[-1].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    try:
        return vit.forward_features(pixels)[:, 0], tokens[-1]
    finally:
        observer.remove()


def run_block(block: Any, x: Tensor) -> Tensor:
    """block(x), (B, N, C) -> (B, N, C)."""
    if isinstance(block, BlockWrapper):
        return block.after(run_block(block.layer, x))
    if not takes_apart(block):
        return block(x)
    inner = block.norm1(x)
    attention = block.attn
    return _add(
        block, x, project(attention, inner, attend(*heads(attention, inner), attention.scale))
    )


def run_cls_row(block: Any, x: Tensor) -> Tensor:
    """block(x)[:, :1], (B, N, C) -> (B, 1, C)."""
    if isinstance(block, BlockWrapper):
        return block.after(run_cls_row(block.layer, x))
    if (
        not takes_apart(block)
        or (isinstance(block.mlp, Wrapper) and not block.mlp.token_by_token)
        or not is_linear(block.attn.qkv)
        or not _made_of(block.attn.qkv, set())
    ):
        return run_block(block, x)[:, :1]
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
    """The rest of timm's Block after attention: x its input, `attended` the attention's output."""
    x = x + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def takes_apart(block: Any) -> bool:
    """Whether `block` is a timm Block with timm's Attention, and has only parts listed above."""
    return (
        type(block) is Block
        and type(block.attn) is Attention
        and _made_of(block, BLOCK)
        and _made_of(block.attn, ATTENTION)
    )


def _made_of(module: nn.Module, parts: set[str]) -> bool:
    observed = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    # Written out because torch 2.6 does not compile issuperset.
    return not observed and all(name in parts for name in module._modules)
