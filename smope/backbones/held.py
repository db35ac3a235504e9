"""Frozen weights kept once more in half precision, for forward passes under autocast.

Autocast rounds a weight anew in every pass: of a ViT about a hundred casts a step, and half a
gigabyte read and written for ViT-B. What it gives is the same tensor each time, so here it is made
once. The parameters stay what they are: what is saved, hashed or computed outside autocast sees
them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Held:
    """What the layers below have in common; a class attribute stands for `none held`."""

    weight: Tensor
    bias: Tensor | None
    held: tuple[Tensor, Tensor | None] | None = None

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias for a product at this place: the held ones where autocast would make
        just these.
        """
        if self.held is None:
            return self.weight, self.bias
        weight, device = self.held[0], self.weight.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == weight.dtype:
            return self.held
        return self.weight, self.bias

    def hold(self, dtype: torch.dtype) -> None:
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        self.held = self.weight.detach().to(dtype), bias

    # Whatever may change the parameters lets go of what was made from them.

    def _apply(self, fn: Callable[[Tensor], Tensor], *arguments: Any, **options: Any) -> Any:
        self.held = None
        return super()._apply(fn, *arguments, **options)  # pyright: ignore[reportAttributeAccessIssue]

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self.held = None
        super()._load_from_state_dict(*arguments, **options)  # pyright: ignore[reportAttributeAccessIssue]


class HeldLinear(_Held, nn.Linear):
    """nn.Linear with the same parameters and the same results."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *self.operands())


class HeldConv2d(_Held, nn.Conv2d):
    """nn.Conv2d with the same parameters and the same results."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *self.operands())


LAYERS = {nn.Linear: HeldLinear, nn.Conv2d: HeldConv2d}


def hold_frozen_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Have the linear and convolutional layers inside `module` that do not train keep their weights
    in `dtype` too.

    Results under autocast to `dtype` are bit for bit what they were, and so are all others.

    Args:
        module: anything; layers of other kinds, and those with a parameter that trains, are left as
        they are.
        dtype: what autocast computes in, torch.bfloat16 or torch.float16.
    """
    for layer in module.modules():
        kind = LAYERS.get(type(layer))
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
            continue
        if kind is not None:
            layer.__class__ = (
                kind  # as torch's own parametrizations do: hooks, names and parameters stay
            )
        if isinstance(layer, _Held):
            layer.hold(dtype)


def operands(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with which a linear layer computes here and now."""
    return layer.operands() if isinstance(layer, _Held) else (layer.weight, layer.bias)  # pyright: ignore[reportReturnType]


def is_linear(layer: nn.Module) -> bool:
    """Whether `layer` is a linear layer and nothing more, so that its weight may be used in parts."""
    return type(layer) in (nn.Linear, HeldLinear)
