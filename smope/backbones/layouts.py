"""Published checkpoints of ViTs in other layouts than timm's: their keys are translated to timm's.

Classification heads are dropped. Other keys that the backbone does not have keep their names, so
that loading reports them as unexpected.
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

# Keys under which a checkpoint keeps its network. Of several, the averaged one comes first, as in
# timm: that is the one its authors evaluate.
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
# Self-supervised training puts these in place of masked patches (DINOv2, MAE; iBOT). The forward
# pass does not use them.
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
# The keys that timm's reader of Google's files understands.
GOOGLE_KEY = re.compile(
    r"(opt/target/|params/)?(cls|pos_embedding|embedding/\w+|(pre_logits|head)/\w+"
    r"|Transformer/(posembed_input/pos_embedding|encoder_norm/\w+|encoderblock_(?P<block>\d+)/.+))"
)


def unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint.

    Args:
        loaded: What torch.load returned, often nested: {'teacher': {...}, 'optimizer': {...}}.
        path: The file, for error messages.

    Raises:
        UserError: There is no state dict in it.
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
    """Tensors by timm's keys: no prefixes of wrappers, no heads or masks, OpenAI's names mapped."""
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
        if not key.startswith(prefix):  # never let one tensor replace another of the same name
            stripped[f"{key} beside {prefix}{key}" if key in stripped else key] = value
    return stripped


def _from_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of a CLIP model, without its projection to the space of text."""
    renamed = {}
    for key, value in tensors.items():
        name = key.removeprefix("visual.")
        if name == key or name == "proj":
            continue
        for theirs, ours in CLIP_NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
        # (C) and (N, C) in CLIP, (1, 1, C) and (1, N, C) in timm
        if name in ("cls_token", "pos_embed"):
            renamed[name] = value.view(1, -1, value.shape[-1])
    return renamed


def read_google(path: Path, vit: VisionTransformer) -> dict[str, Tensor]:
    """The tensors of one of Google's .npz files by timm's keys.

    timm reads the file into a copy of the model. The copy starts as NaN; tensors that the reader
    does not set are left out, because it stops at a tensor that is missing or has another shape.

    Args:
        path: The file.
        vit: The model that the weights are for; not changed.
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
