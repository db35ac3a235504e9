"""NoRGa: HiDe-Prompt with a non-linear residual gate on the logits of the prefix.

Le et al., NeurIPS 2024, arXiv 2405.14124, after their public code. The logits s of a prefix (scale
included) become

    s + outer · activation(inner · s)

with two learned numbers for each block, inner and outer, which are trained in the first task.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.methods.base import Reference
from smope.methods.hide import HiDePrompt
from smope.prompts.prefix import Prefix

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": nn.functional.gelu,
}


class NoRGa(HiDePrompt):
    """HiDe-Prompt with gates.

    Args:
        activation: of the gate. All other arguments are those of HiDePrompt.
    """

    reference = Reference(
        "Le et al. 2024, arXiv 2405.14124, and the authors' code",
        HiDePrompt.reference.note,
        published_parameters=4.21,
        published_gflops=(33.72, 67.45),
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        activation: Literal["tanh", "sigmoid", "gelu"] = "sigmoid",
        **settings: Any,
    ) -> None:
        """`settings` are HiDe-Prompt's: every key of method=hide is one here too."""
        super().__init__(backbone, num_classes, total_tasks, **settings)
        self.activation = ACTIVATIONS[activation]
        self.gates = nn.Parameter(torch.ones(len(self.prompts), 2))  # inner and outer of each block

    def _prefixes(self, rows: Tensor) -> list[Prefix]:
        learning = self.training and int(self.task) == 0
        gates = self.gates if learning else self.gates.detach()
        return [
            Prefix(
                keys, values, partial(gated, inner=inner, outer=outer, activation=self.activation)
            )
            for (keys, values), (inner, outer) in zip(rows, gates, strict=True)
        ]


def gated(
    logits: Tensor, inner: Tensor, outer: Tensor, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply the gate.

    Args:
        logits: of any shape.
        inner: scalar.
        outer: scalar.
        activation: applied to inner · logits.

    Returns:
        logits + outer · activation(inner · logits).
    """
    return logits + outer * activation(inner * logits)
