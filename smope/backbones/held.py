"""Frozen weights, held in half precision as well for forward passes under autocast.

Autocast casts every weight again in every pass: about a hundred casts in a step of a ViT, which
read and write half a gigabyte for ViT-B. The result is the same tensor each time, so it is made
once here. The parameters do not change: saving, hashing and everything outside autocast use only
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Held:
    """What the layers below have in common. `held` is None if no weights are held."""

    weight: Tensor
    bias: Tensor | None
    held: tuple[Tensor, Tensor | None] | None = None

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias for a product here: the held ones if autocast would make the same."""
        if self.held is None:
            return self.weight, self.bias
        weight, device = self.held[0], self.weight.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == weight.dtype:
            return self.held
        return self.weight, self.bias

    def hold(self, dtype: torch.dtype) -> None:
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        self.held = self.weight.detach().to(dtype), bias

    # Whatever may change the parameters drops the held copies.

    def _apply(self, fn: Callable[[Tensor], Tensor], *arguments: Any, **options: Any) -> Any:
        self.held = None
        return super()._apply(fn, *arguments, **options)  # pyright: ignore[reportAttributeAccessIssue]

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *arguments: Any, **options: Any
    ) -> None:
        if any(key.startswith(prefix) for key in state_dict):
            self.held = None
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)  # pyright: ignore[reportAttributeAccessIssue]


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
    """Hold the weights of frozen linear and convolutional layers in `dtype` as well.

    Results stay equal bit for bit, under autocast to `dtype` and without it.

    Args:
        module: its layers are changed. Layers of other kinds, and layers with a parameter that is
            trained, stay as they are.
        dtype: what autocast computes in, torch.bfloat16 or torch.float16.
    """
    for layer in module.modules():
        kind = LAYERS.get(type(layer))
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
            continue
        if kind is not None:
            # As torch's own parametrizations do it: hooks, names and parameters stay.
            layer.__class__ = kind
        if isinstance(layer, _Held):
            layer.hold(dtype)


def operands(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that a linear layer uses for a product here."""
    if isinstance(layer, _Held):
        return layer.operands()
    return layer.weight, layer.bias  # pyright: ignore[reportReturnType]


def is_linear(layer: nn.Module) -> bool:
    """Whether `layer` is a plain linear layer, whose weight may be used in parts."""
    return type(layer) in (nn.Linear, HeldLinear)
