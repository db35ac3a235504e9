"""The layouts in which published checkpoints keep a ViT, brought to timm's keys without a
classification head.

Keys that are neither the backbone's nor a head's are kept under their own names, so that whoever
compares them with the model's finds them.
"""

from __future__ import annotations

import copy
import re
from contextlib import suppress
from pathlib import Path

import numpy
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from smope.errors import UserError

# Where a checkpoint has several networks, the averaged one comes first, as in timm: it is the one
# that is evaluated.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "teacher",
    "student",
)
PREFIXES = ("module.", "backbone.", "vit.")
HEADS = re.compile(r"(\w+_)?head(_dist)?\.|fc_norm\.")
# What self-supervised training puts in place of hidden patches (DINOv2, MAE; iBOT): no part of the
# forward pass.
MASKS = ("mask_token", "masked_embed")
# OpenAI's names and timm's, https://github.com/openai/CLIP/blob/main/clip/model.py
CLIP_NAMES = {
    "conv1.": "patch_embed.proj.",
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "ln_pre.": "norm_pre.",
    "ln_post.": "norm.",
    "transformer.resblocks.": "blocks.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".in_proj_": ".qkv.",
    ".out_proj.": ".proj.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
}
# What timm's reader of Google's files knows of, as the ViT's blocks lie there one by one.
GOOGLE_KEY = re.compile(
    r"(opt/target/|params/)?(cls|pos_embedding|embedding/\w+|(pre_logits|head)/\w+"
    r"|Transformer/(posembed_input/pos_embedding|encoder_norm/\w+|encoderblock_(?P<block>\d+)/.+))"
)


def unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """The tensors inside the usual layers of training checkpoints, such as {'teacher': {...},
    'optimizer': ...}.
    """
    while isinstance(loaded, dict):
        inner = next(
            (loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), dict)), None
        )
        if inner is None:
            return {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
        loaded = inner
    raise UserError(
        f"backbone.weights={path}: holds a {type(loaded).__name__}, not a state dict of tensors"
    )


def timm_keys(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, without heads and masks, OpenAI's names translated."""
    if "visual.class_embedding" in tensors:
        return _from_clip(tensors)
    for prefix in PREFIXES:
        if any(key.startswith(prefix) and ".blocks." in key for key in tensors):
            tensors = _without(prefix, tensors)
    return {
        key: value for key, value in tensors.items() if key not in MASKS and not HEADS.match(key)
    }


def _without(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stripped = {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
    for key, value in tensors.items():
        if not key.startswith(prefix):  # two tensors are never taken for one
            stripped[f"{key} beside {prefix}{key}" if key in stripped else key] = value
    return stripped


def _from_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of a CLIP, without its projection to the text's space."""
    found = {}
    for key, value in tensors.items():
        name = key.removeprefix("visual.")
        if name == key or name == "proj":
            continue
        for theirs, ours in CLIP_NAMES.items():
            name = name.replace(theirs, ours)
        found[name] = value
        # (C) and (N, C) there, (1, 1, C) and (1, N, C) in timm
        if name in (
            "cls_token",
            "pos_embed",
        ):
            found[name] = value.view(1, -1, value.shape[-1])
    return found


def read_google(path: Path, vit: VisionTransformer) -> dict[str, Tensor]:
    """The tensors of one of Google's .npz files by timm key, as timm reads them into a copy of
    `vit`.

    The copy starts as NaN, and what the reader does not set is left out of the result: it stops
    where a tensor lacks or has another shape.
    """
    filled = copy.deepcopy(vit)
    with torch.no_grad():
        for parameter in filled.parameters():
            parameter.fill_(torch.nan)
        with suppress(KeyError, RuntimeError):
            filled.load_pretrained(str(path))
    tensors = {key: value for key, value in filled.state_dict().items() if not value.isnan().any()}
    with numpy.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            match = GOOGLE_KEY.fullmatch(name)
            if match is None or int(match["block"] or 0) >= len(vit.blocks):
                tensors[name] = torch.from_numpy(archive[name])
            if name.endswith("embedding/kernel"):  # timm would stretch patches of another size
                tensors["patch_embed.proj.weight"] = torch.from_numpy(archive[name]).permute(
                    3, 2, 0, 1
                )
    return tensors
