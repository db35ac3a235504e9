"""What a method costs: trained parameters, stored state, memory, and floating-point operations
(see flops.py).
"""

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
    """Trained parameters: those of the prompts (everything but the classifier), and the
    classifier's.
    """
    return {
        "prompt": sum(
            parameter.numel() for parameter in method.prompt_parameters() if parameter.requires_grad
        ),
        "classifier": sum(
            parameter.numel()
            for parameter in method.classifier.parameters()
            if parameter.requires_grad
        ),
    }


def stored_bytes(method: Method) -> int:
    """Bytes of all that a checkpoint holds of `method` between two tasks: what it learned and what
    it remembers.
    """
    return sum(value.numel() * value.element_size() for value in method.trained_state().values())


def saved_bytes(run: Callable[[], object], module: nn.Module) -> int:
    """Bytes that run() keeps for its backward pass: each storage once, the module's own tensors
    left out.

    What the autograd hooks see: a compiled graph keeps its tensors itself.
    """
    own = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
    found: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run()
    return sum(found.values())


def step_state_bytes(method: Method) -> dict[str, int]:
    """Bytes that training holds beside activations: weights and buffers, gradients, AdamW's two
    moments.
    """
    tensors = {x.data_ptr(): x for x in (*method.parameters(), *method.buffers()) if x.numel()}
    trained = sum(x.numel() * x.element_size() for x in method.parameters() if x.requires_grad)
    weights = sum(x.numel() * x.element_size() for x in tensors.values())
    return {"weights": weights, "gradients": trained, "optimizer": 2 * trained}


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most bytes since the process began, as far as the system says.

    process_resident: resident set, with Python, libraries and images. cuda_allocated: tensors on a
    CUDA device.
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
