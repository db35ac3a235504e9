"""What a method costs: trained parameters and floating-point operations (counted in flops.py)."""

from __future__ import annotations

from smope.methods.base import Method
from smope.metrics.flops import count_flops

__all__ = ["count_flops", "count_parameters"]


def count_parameters(method: Method) -> dict[str, int]:
    """Trained parameters: those of the prompts (everything but the classifier), and the classifier's."""
    return {
        "prompt": sum(parameter.numel() for parameter in method.prompt_parameters() if parameter.requires_grad),
        "classifier": sum(parameter.numel() for parameter in method.classifier.parameters() if parameter.requires_grad),
    }
