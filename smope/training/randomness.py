"""The global generators that a method may draw from: torch's on the CPU and on the device, numpy's
and Python's.
"""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from torch import Tensor


def seed_generators(seed: int) -> None:
    """Start all of them from `seed`."""
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)


def generator_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Their states: torch's as tensors (uint8) by the name of the device, the others as plain JSON
    values.
    """
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        tensors["mps"] = torch.mps.get_rng_state()
    kind, keys, *rest = numpy.random.get_state()
    return tensors, {
        "numpy": [kind, numpy.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }


def restore_generators(
    tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device
) -> None:
    """Put generator_states() back; the state of a device that this is not is left out."""
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    elif device.type == "mps" and "mps" in tensors:
        torch.mps.set_rng_state(tensors["mps"])
    numpy.random.set_state(tuple(values["numpy"]))
    version, state, gauss = values["python"]
    random.setstate((version, tuple(state), gauss))
