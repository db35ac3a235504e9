"""In which precision a run computes, by the names of trainer.precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from smope.methods.base import Method

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The precision of forward passes."""
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def hold_frozen(method: Method, precision: str) -> None:
    """Keep a frozen backbone's weights in `precision` as well, where forward passes run under
    autocast to it.

    No result changes; a step has a hundred kernels less. What trains is left alone, so is a
    backbone that does.
    """
    if precision in AUTOCAST and method.backbone.frozen:
        method.backbone.hold(AUTOCAST[precision])


def full_precision(precision: str) -> torch.dtype:
    """Of what is not under autocast: parameters, images, what is remembered."""
    return torch.float64 if precision == "float64" else torch.float32


@torch.no_grad()
def evaluated(method: Method, images: Tensor, precision: str) -> Tensor:
    """images (B, 3, S, S) in [0, 1] -> logits (B, num_classes): features in `precision`, classified
    in full precision, for rounded logits have ties.
    """
    with autocast(precision, images.device):
        features = method.features(images).to(full_precision(precision))
    return method.classify(features)
