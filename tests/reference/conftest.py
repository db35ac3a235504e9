"""The product's method and the slow one, made from the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.methods.smope import SMoPE
from smope.routers.adaptive_noise import AdaptiveNoise
from tests.tiny import frozen, tiny_vit

from .slow_smope import SlowExperts, SlowViT

EXPERTS, TOP_K, CLASSES = 7, 3, 6


@dataclass
class Pair:
    """A method and its slow twin in float64: the slow one has leaf tensors of its own for experts
    and classifier.
    """

    method: SMoPE
    slow: SlowViT
    weight: Tensor
    bias: Tensor
    images: Tensor

    def set_flags(self, frequent: Tensor) -> None:
        """frequent (blocks, H, E) bool, in both."""
        for bank, experts, flags in zip(
            self.method.experts, self.slow.experts.values(), frequent, strict=True
        ):
            bank.frequent.copy_(flags)
            experts.frequent = flags.tolist()

    def set_counts(self, counts: Tensor) -> None:
        """counts (blocks, H, E) int64, in both."""
        for bank, experts, numbers in zip(
            self.method.experts, self.slow.experts.values(), counts, strict=True
        ):
            bank.counts.copy_(numbers)
            experts.counts = numbers.tolist()

    def move_experts(self, seed: int) -> None:
        """Other keys and values, in both."""
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for bank, experts in zip(self.method.experts, self.slow.experts.values(), strict=True):
                for ours, theirs in ((bank.keys, experts.keys), (bank.values, experts.values)):
                    ours.copy_(torch.randn(ours.shape, generator=draw, dtype=ours.dtype))
                    theirs.copy_(ours)


@pytest.fixture
def make_pair() -> Callable[..., Pair]:
    """(blocks, ViT options, router options, method options) -> Pair."""

    def make(
        blocks: Sequence[int] = (0, 1),
        vit_options: dict[str, Any] | None = None,
        epsilon: float = 0.7,
        exclude_unused: bool = True,
        **options: Any,
    ) -> Pair:
        sizes = {"img_size": 16, "embed_dim": 8, "depth": 4, **(vit_options or {})}
        vit = tiny_vit(seed=3, **sizes).double()
        weights = {name: value.clone() for name, value in vit.state_dict().items()}
        torch.manual_seed(5)
        method = SMoPE(
            frozen(vit, mean=0.0, std=1.0),
            CLASSES,
            AdaptiveNoise(TOP_K, epsilon, exclude_unused),
            num_experts=EXPERTS,
            blocks=list(blocks),
            router_loss_weight=options.pop("router_loss_weight", 0.3),
            prototype_loss_weight=options.pop("prototype_loss_weight", 0.2),
            **options,
        ).double()
        experts = {
            block: SlowExperts.fresh(copied(bank.keys), copied(bank.values))
            for block, bank in zip(blocks, method.experts, strict=True)
        }
        in_input_space = options.get("expert_space") == "input"
        slow = SlowViT(weights, 2, experts, TOP_K, epsilon, exclude_unused, in_input_space)
        pair = Pair(
            method,
            slow,
            copied(method.classifier.weight),
            copied(method.classifier.bias),
            torch.randn(3, 3, 16, 16, dtype=torch.float64),
        )
        pair.move_experts(seed=11)
        return pair

    return make


def copied(parameter: Tensor) -> Tensor:
    return parameter.detach().clone().requires_grad_()
