"""Modules of low rank beside a frozen layer that all images use: no router chooses.

Shapes: B batch, N tokens, C width of the input, W width of the output, M modules, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smope.backbones.wrapping import Part, Wrapper, wrap
from smope.experts.adapter import Adapters
from smope.experts.lora import LoRA, LoRAOfTasks
from smope.experts.low_rank import LowRankExperts


class SharedModules(Wrapper):
    """A frozen layer with M modules of low rank beside it, each of them for all images.

    `modules_beside` holds them as one tensor axis, such as one module (M = 1) for all tasks, or one
    for each task. `used` says which take part: output = layer(x) + Σ over them of module(x). Where
    modules are narrower than the output, they reach its last channels. `observer` is shown x.
    """

    token_by_token = True

    def __init__(self, layer: nn.Module, modules_beside: LowRankExperts) -> None:
        super().__init__(layer)
        self.modules_beside = modules_beside
        self.used = slice(None)
        # Not a hook: what torch.compile has compiled ignores new hooks.
        self.observer: Callable[[Tensor], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, W)."""
        if self.observer is not None:
            self.observer(x)
        out = self.layer(x)
        added = self.modules_beside.together(x, self.used).to(out.dtype)
        missing = out.shape[-1] - added.shape[-1]
        return out + (F.pad(added, (missing, 0)) if missing else added)


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


def add_lora_of_tasks(
    vit: VisionTransformer, blocks: Sequence[int], tasks: int, rank: int, scale: float
) -> list[SharedModules]:
    """Put LoRA for each task beside the projection to keys and values of each listed block.

    Args:
        vit: changed in place.
        blocks: numbers of the blocks, from 0.
        tasks: changes of a weight, M.
        rank: r of each.
        scale: see LoRA.

    Returns:
        The wrappers, in the order of `blocks`.

    Raises:
        UserError: as backbones/wrapping.py says.
    """

    def beside(layer: Any) -> SharedModules:
        keys_and_values = 2 * (layer.out_features // 3)
        changes = LoRAOfTasks(tasks, rank, layer.in_features, keys_and_values, scale)
        return SharedModules(layer, changes)

    return wrap(vit, blocks, beside, part="attn.qkv")
