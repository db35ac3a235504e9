"""Where a checkpoint keeps the tensors of its network: inside dictionaries, or in Google's .npz
files. naming.py translates their names.
"""

from __future__ import annotations

import copy
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

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
    "ema_state_dict",
    "ema",
    "shadow",
    "state_dict",
    "model",
    "model_state_dict",
    "teacher",
    "student",
    "module",
    "net",
    "network",
    "encoder",
    "backbone",
    "weights",
    "params",
)
# Dictionaries of training, which hold tensors too.
TRAINING = re.compile(r"optim|sched|scaler|loss|queue|callback|loops|hyper|rng|args|config", re.I)
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
        UserError: There is no state dict in it, or several of which none is known to come first.
    """
    while isinstance(loaded, dict):
        inner = _networks(loaded)
        known = [name for name in WRAPPERS if name in inner]
        tensors = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
        if not known and (tensors or not inner):
            return tensors
        if not known and len(inner) > 1:
            raise UserError(
                f"backbone.weights={path}: holds several networks, {', '.join(map(str, inner))}; "
                f"save the one that you want in a file of its own"
            )
        loaded = inner[(known or list(inner))[0]]
    raise UserError(
        f"backbone.weights={path}: holds a {type(loaded).__name__}, not a state dict of tensors"
    )


def _networks(loaded: dict[Any, Any]) -> dict[Any, dict[Any, Any]]:
    """The dictionaries inside that hold tensors under names, but for what belongs to training."""
    return {
        key: value
        for key, value in loaded.items()
        if isinstance(value, dict) and not TRAINING.search(str(key)) and _has_tensors(value)
    }


def _has_tensors(loaded: dict[Any, Any]) -> bool:
    return any(
        isinstance(value, Tensor) or (isinstance(value, dict) and _has_tensors(value))
        for value in loaded.values()
    )


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
