"""A backbone round a ViT that somebody else has made and loaded."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smope.backbones.vit import (
    REQUIREMENT,
    Backbone,
    BackboneIdentity,
    check_square,
    tensors_sha256,
)
from smope.errors import UserError


def given_backbone(vit: nn.Module) -> Backbone:
    """Freeze a ViT and put pixel statistics before it.

    They are the mean and std of its `pretrained_cfg`, which timm.create_model sets. A ViT without
    one gets pixels as they are, in [0, 1].

    Raises:
        UserError: it is no square timm ViT with a CLS token that is read after the ViT's norm.
    """
    name = type(vit).__name__
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None:
        raise UserError(f"backbone: got a {name}; {REQUIREMENT}")
    if isinstance(vit.norm, nn.Identity):
        raise UserError(
            f"backbone: this {name} has no norm before its CLS feature; create it with "
            f"timm.create_model(..., global_pool='token')"
        )
    config: Any = getattr(vit, "pretrained_cfg", None) or {}
    name = ".".join(filter(None, (config.get("architecture", name), config.get("tag"))))
    check_square(name, vit)
    mean, std = config.get("mean") or (0.0,) * 3, config.get("std") or (1.0,) * 3
    identity = BackboneIdentity(name, "given", tensors_sha256(vit), tuple(mean), tuple(std))
    return Backbone(vit, identity)
