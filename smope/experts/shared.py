"""Modules of low rank beside a frozen layer that all images use: no router chooses.

Shapes: B batch, N tokens, C width of the input, W width of the output, M modules, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smope.backbones.wrapping import Part, Wrapper, wrap
from smope.experts.adapter import Adapters
from smope.experts.lora import LoRA
from smope.experts.low_rank import LowRankExperts


class SharedModules(Wrapper):
    """A frozen layer with M modules of low rank beside it, each of them for all images.

    `modules_beside` holds them as one tensor axis, such as one module (M = 1) for all tasks, or one
    for each task. `used` says which take part: output = layer(x) + Σ over them of module(x).
    """

    token_by_token = True

    def __init__(self, layer: nn.Module, modules_beside: LowRankExperts) -> None:
        super().__init__(layer)
        self.modules_beside = modules_beside
        self.used = slice(None)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, W)."""
        out = self.layer(x)
        return out + self.modules_beside.together(x, self.used).to(out.dtype)


def add_adapters(
    vit: VisionTransformer, blocks: Sequence[int], number: int, rank: int, scale: float
) -> list[SharedModules]:
    """Put adapters beside the MLP of each listed block.

    Args:
        vit: changed in place.
        blocks: numbers of the blocks, from 0.
        number: adapters of a block, M.
        rank: r.
        scale: see Adapters.

    Returns:
        The wrappers, in the order of `blocks`.

    Raises:
        UserError: as backbones/wrapping.py says.
    """
    width = vit.embed_dim
    return wrap(
        vit,
        blocks,
        lambda layer: SharedModules(layer, Adapters(number, rank, width, scale)),
        part="mlp",
    )


def add_lora(
    vit: VisionTransformer,
    blocks: Sequence[int],
    parts: Sequence[Part],
    number: int,
    rank: int,
    scale: float,
) -> list[SharedModules]:
    """Put LoRA beside linear layers of each listed block.

    Args:
        vit: changed in place.
        blocks: numbers of the blocks, from 0.
        parts: the layers of a block, such as "attn.qkv" or "mlp.fc1".
        number: changes of a layer's weight, M.
        rank: r of each.
        scale: see LoRA.

    Returns:
        The wrappers, those of the first part first.

    Raises:
        UserError: as backbones/wrapping.py says.
    """

    def beside(layer: Any) -> SharedModules:
        sizes = layer.in_features, layer.out_features
        return SharedModules(layer, LoRA(number, rank, *sizes, scale))

    return [wrapper for part in parts for wrapper in wrap(vit, blocks, beside, part=part)]
