"""Putting experts into the blocks of a ViT, and taking them out again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smope.backbones.wrapping import Part, wrap
from smope.backbones.wrapping import unwrap as detach
from smope.experts.attention import PromptedAttention
from smope.experts.bank import ExpertBank
from smope.experts.beside import ExpertsBeside
from smope.experts.routed import RoutedWrapper
from smope.routers.base import Router

__all__ = ["Placement", "attach", "detach"]

Placement = Literal["prefix", "mlp", "lora"]
WRAPPERS: Mapping[Placement, tuple[Part, type[RoutedWrapper]]] = {
    "prefix": ("attn", PromptedAttention),
    "mlp": ("mlp", ExpertsBeside),
    "lora": ("attn.qkv", ExpertsBeside),
}


def attach(
    vit: VisionTransformer,
    blocks: Sequence[int],
    router: Router,
    make_bank: Callable[[Any], ExpertBank],
    placement: Placement = "prefix",
) -> list[RoutedWrapper]:
    """Put experts into each listed block of a timm ViT.

    Args:
        vit: Changed in place.
        blocks: Numbers of the blocks, from 0.
        router: Each block gets its own copy, built for its sizes; declare/placement.py says which
            fit a placement.
        make_bank: Builds the experts of one block from the part that they join.
        placement: Where they are: "prefix" in attention, "mlp" beside the MLP, "lora" beside the
            joint projection to q, k and v.

    Returns:
        The wrappers, in the order of `blocks`.

    Raises:
        UserError: As backbones/wrapping.py says; then nothing is changed.
    """
    part, wrapper = WRAPPERS[placement]

    def wrapped(layer: nn.Module) -> RoutedWrapper:
        bank, own = make_bank(layer), copy.deepcopy(router)
        own.build(*bank.keys.shape)
        return wrapper(layer, bank, own)

    return wrap(vit, blocks, wrapped, part=part)
