"""A hash over the backbone's frozen tensors, by which a run proves that it did not change them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from smope.methods.base import Method


def frozen_state(method: Method) -> dict[str, Tensor]:
    """Parameters and buffers of the backbone that the method neither learns nor remembers, by
    name.
    """
    learned = {value.data_ptr() for value in method.trained_state().values() if value.numel()}
    return {
        key: value
        for key, value in method.backbone.state_dict().items()
        if value.data_ptr() not in learned
    }


def frozen_sha256(method: Method) -> str:
    """SHA-256 (hex) over names, types and bytes of frozen_state(); the same on every device."""
    digest = hashlib.sha256()
    for key, value in sorted(frozen_state(method).items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
