"""The logits that a training loss was computed from, for Avalanche's metrics and plugins.

Letters: B batch, N all classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, what the module returns is collected.

    A method gives its losses and not its logits. Those of the batch are the first that its
    classifier returns, so they cost no second pass.
    """
    outputs: list[Tensor] = []

    def collect(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
        outputs.append(output)

    handle = module.register_forward_hook(collect)
    try:
        yield outputs
    finally:
        handle.remove()
