"""Putting prompt experts into the blocks of a ViT, and taking them out again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from timm.models.vision_transformer import Attention, VisionTransformer  # pyright: ignore[reportPrivateImportUsage]

from smope.backbones.wrapping import unwrap as detach
from smope.backbones.wrapping import wrap
from smope.experts.attention import PromptedAttention
from smope.experts.bank import ExpertBank
from smope.routers.base import Router

__all__ = ["attach", "detach"]


def attach(
    vit: VisionTransformer,
    blocks: Sequence[int],
    router: Router,
    make_bank: Callable[[Attention], ExpertBank],
) -> list[PromptedAttention]:
    """Wrap the attention of each listed block of a timm ViT; returns the wrappers in the order of
    `blocks`.

    make_bank(attention) -> ExpertBank builds the experts of one block; each block gets its own copy
    of `router`, built for its sizes. Errors as in backbones/wrapping.py; then nothing is changed.
    """

    def wrapped(attention: Attention) -> PromptedAttention:
        bank, own = make_bank(attention), copy.deepcopy(router)
        own.build(*bank.keys.shape)
        return PromptedAttention(attention, bank, own)

    return wrap(vit, blocks, wrapped)
