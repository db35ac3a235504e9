"""What a method must not change: the backbone's own tensors, under a hash that a run can write
down.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from smope.methods.base import Method


def frozen_state(method: Method) -> dict[str, Tensor]:
    """Parameters and buffers of the backbone that are no part of what the method learns or
    remembers, by name.
    """
    own = {value.data_ptr() for value in method.trained_state().values() if value.numel()}
    return {
        key: value
        for key, value in method.backbone.state_dict().items()
        if value.data_ptr() not in own
    }


def frozen_sha256(method: Method) -> str:
    """SHA-256 (hex) over names, kinds and bytes of frozen_state(); the same whatever the device."""
    digest = hashlib.sha256()
    for key, value in sorted(frozen_state(method).items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
