"""What a method costs: trained parameters, stored state and memory; flops.py counts operations."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from smope.methods.base import Method
from smope.metrics.flops import count_flops, count_phases

__all__ = [
    "count_flops",
    "count_parameters",
    "count_phases",
    "peak_memory",
    "saved_bytes",
    "step_state_bytes",
    "stored_bytes",
]


def count_parameters(method: Method) -> dict[str, int]:
    """The numbers of trained parameters: of the classifier, and of everything else ("prompt")."""
    groups = {"prompt": method.prompt_parameters(), "classifier": method.classifier.parameters()}
    return {
        name: sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        for name, parameters in groups.items()
    }


def stored_bytes(method: Method) -> int:
    """Bytes of all tensors of `method` that a checkpoint between two tasks holds."""
    return sum(value.numel() * value.element_size() for value in method.trained_state().values())


def saved_bytes(run: Callable[[], object], module: nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward pass, as autograd's hooks see them.

    Each storage counts once. A compiled graph keeps its tensors itself, so they do not count.

    Args:
        run: The forward pass.
        module: Its parameters and buffers do not count.
    """
    state = (*module.parameters(), *module.buffers())
    excluded = {x.untyped_storage().data_ptr() for x in state}
    bytes_of: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in excluded:
            bytes_of[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run()
    return sum(bytes_of.values())


def step_state_bytes(method: Method) -> dict[str, int]:
    """Bytes that training needs beside activations, by kind.

    weights include buffers; optimizer is the two moments of AdamW.
    """
    tensors = {x.data_ptr(): x for x in (*method.parameters(), *method.buffers()) if x.numel()}
    trained = sum(x.numel() * x.element_size() for x in method.parameters() if x.requires_grad)
    weights = sum(x.numel() * x.element_size() for x in tensors.values())
    return {"weights": weights, "gradients": trained, "optimizer": 2 * trained}


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most bytes that this process has used, as far as the system reports them.

    process_resident is the resident set, with Python, libraries and images; cuda_allocated the
    tensors on a CUDA device.
    """
    peaks: dict[str, int] = {}
    if device.type == "cuda":
        peaks["cuda_allocated"] = torch.cuda.max_memory_allocated(device)
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # not on Windows
        return peaks
    unit = 1 if sys.platform == "darwin" else 1024
    return peaks | {"process_resident": getrusage(RUSAGE_SELF).ru_maxrss * unit}
