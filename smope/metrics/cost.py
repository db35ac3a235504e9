"""What a method costs: trained parameters, stored state, memory, and floating-point operations (see flops.py)."""

from __future__ import annotations

import sys

import torch

from smope.methods.base import Method
from smope.metrics.flops import count_flops

__all__ = ["count_flops", "count_parameters", "peak_memory", "stored_bytes"]


def count_parameters(method: Method) -> dict[str, int]:
    """Trained parameters: those of the prompts (everything but the classifier), and the classifier's."""
    return {
        "prompt": sum(parameter.numel() for parameter in method.prompt_parameters() if parameter.requires_grad),
        "classifier": sum(parameter.numel() for parameter in method.classifier.parameters() if parameter.requires_grad),
    }


def stored_bytes(method: Method) -> int:
    """Bytes of all that a checkpoint holds of `method` between two tasks: what it learned and what it remembers."""
    return sum(value.numel() * value.element_size() for value in method.trained_state().values())


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most bytes since the process began, as far as the system says.

    process_resident: resident set, with Python, libraries and images. cuda_allocated: tensors on a CUDA device.
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
