"""The precisions that a run can compute in, by the names of trainer.precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from smope.methods.base import Method

AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which forward passes compute.

    Args:
        precision: trainer.precision.
        device: where they compute.

    Returns:
        torch's autocast, or a context that does nothing.
    """
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@contextmanager
def callers_precision(dtype: torch.dtype, device: torch.device) -> Iterator[str]:
    """Name the precision that a caller's autocast asks for. Within the context autocast is off, so
    that each part of the work decides for itself.

    Args:
        dtype: of the parameters.
        device: where they are.

    Returns:
        A precision, by its name.
    """
    precision = "float64" if dtype == torch.float64 else "float32"
    if precision == "float32" and torch.is_autocast_enabled(device.type):
        names = {value: name for name, value in AUTOCAST_DTYPES.items()}
        precision = names[torch.get_autocast_dtype(device.type)]
    with torch.autocast(device.type, enabled=False):
        yield precision


def hold_frozen(method: Method, precision: str) -> None:
    """Hold a frozen backbone's weights in half precision as well, if forward passes use it.

    No result changes, and a step has about a hundred kernels less. A backbone that is trained is
    left alone.

    Args:
        method: its backbone is changed.
        precision: trainer.precision.
    """
    if precision in AUTOCAST_DTYPES and method.backbone.frozen:
        method.backbone.hold(AUTOCAST_DTYPES[precision])


def full_precision(precision: str) -> torch.dtype:
    """The type of what autocast does not change: parameters, images and class statistics."""
    return torch.float64 if precision == "float64" else torch.float32


@torch.no_grad()
def evaluated_features(method: Method, images: Tensor, precision: str) -> Tensor:
    """Features for evaluation, computed in `precision`.

    Args:
        method: in evaluation mode.
        images: (B, 3, S, S) in [0, 1].
        precision: trainer.precision.

    Returns:
        Features (B, C) in full precision. They are contiguous, since the order of a tensor in
        memory may change the last digits of the logits.
    """
    with autocast(precision, images.device):
        features = method.features(images)
    return features.to(full_precision(precision)).contiguous()


@torch.no_grad()
def evaluated(method: Method, images: Tensor, precision: str) -> Tensor:
    """Logits for evaluation.

    Features are computed in `precision` and classified in full precision, since rounded logits
    have ties.

    Args:
        method: in evaluation mode.
        images: (B, 3, S, S) in [0, 1].
        precision: trainer.precision.

    Returns:
        Logits (B, num_classes).
    """
    return method.classify(evaluated_features(method, images, precision))
