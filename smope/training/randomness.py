"""The global random generators that a method may draw from: torch's (CPU and device), numpy's and
Python's.
"""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from torch import Tensor


def seed_generators(seed: int) -> None:
    """Seed all of them."""
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)


def generator_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The states of all generators: torch's as uint8 tensors by device, the others as plain
    JSON.
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
    """Restore what generator_states() gave.

    Args:
        tensors: states of torch's generators, by device; those of other devices are ignored.
        values: states of numpy's and Python's.
        device: where the method computes.
    """
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    elif device.type == "mps" and "mps" in tensors:
        torch.mps.set_rng_state(tensors["mps"])
    numpy.random.set_state(tuple(values["numpy"]))
    version, state, gauss = values["python"]
    random.setstate((version, tuple(state), gauss))
