"""Experts beside the MLP and beside qkv: features, choices, losses and gradients equal those of
slow_beside.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smope.methods.base import TaskSpan
from smope.methods.smope import SMoPE
from smope.routers.adaptive_noise import AdaptiveNoise
from tests.tiny import frozen, tiny_vit

from . import slow_smope
from .slow_beside import SlowBeside, slow_experts

EXPERTS, TOP_K, CLASSES, EPSILON = 7, 3, 6, 0.7
SECOND, LABELS = TaskSpan(1, 3, CLASSES), torch.tensor([3, 5, 5])
LAYOUTS: dict[str, dict[str, Any]] = {
    "first blocks": {"blocks": (0, 1)},
    "the last block too": {"blocks": (3, 1)},
    "registers and layer scale": {
        "blocks": (1, 2),
        "vit_options": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.5},
    },
    "qk_norm": {"blocks": (1, 2), "vit_options": {"qk_norm": True}},
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
placements = pytest.mark.parametrize("placement", ["mlp", "lora"])


def make_pair(
    placement: str, blocks: tuple[int, ...], vit_options: dict[str, Any] | None = None
) -> tuple[SMoPE, SlowBeside]:
    """A method in float64, as after a task, and its slow twin with leaf tensors of its own."""
    sizes = {"img_size": 16, "embed_dim": 8, "depth": 4, **(vit_options or {})}
    vit = tiny_vit(seed=3, **sizes).double()
    slow = SlowBeside(dict(vit.state_dict()), 2, {}, TOP_K, EPSILON, placement=placement)
    torch.manual_seed(5)
    method = SMoPE(
        frozen(vit, mean=0.0, std=1.0),
        CLASSES,
        AdaptiveNoise(TOP_K, EPSILON),
        num_experts=EXPERTS,
        blocks=list(blocks),
        router_loss_weight=0.3,
        prototype_loss_weight=0.2,
        placement=placement,
        rank=2,
    ).double()
    for block, bank in zip(blocks, method.experts, strict=True):
        with torch.no_grad():
            for parameter in bank.parameters():
                parameter.normal_()
            bank.old_keys.normal_()
            bank.counts.random_(3)
            bank.frequent.copy_(torch.rand(bank.frequent.shape) < 0.4)
        slow.experts[block] = experts = slow_experts(bank.keys)
        experts.counts, experts.frequent = bank.counts.tolist(), bank.frequent.tolist()
        experts.old_keys = bank.old_keys
        slow.down[block], slow.up[block] = (
            rows.detach().clone().requires_grad_() for rows in (bank.experts.down, bank.experts.up)
        )
    return method, slow


def images() -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, 16, 16, generator=draw, dtype=torch.float64)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@layouts
@placements
@pytest.mark.parametrize("mode", ["dense", "train", "eval"])
def test_features_scores_and_choices(placement: str, layout: dict[str, Any], mode: Any) -> None:
    method, slow = make_pair(placement, **layout)
    method.train(mode != "eval").dense = mode == "dense"
    features, expected = method.features(images()), slow.forward(images(), mode)
    assert_equal(features, torch.stack(expected.features))
    from_below = sorted(range(2), key=lambda number: layout["blocks"][number])
    for place, number in enumerate(from_below):
        routing = method.routings[number]
        for image in range(3):
            assert_equal(routing.scores[image, 0], expected.scores[image][place][0])
            chosen = expected.chosen[image][place][0]
            assert sorted(routing.expert_ids[image, 0].tolist()) == sorted(chosen)


@layouts
@placements
def test_losses_and_gradients(placement: str, layout: dict[str, Any]) -> None:
    method, slow = make_pair(placement, **layout)
    losses = method.train().losses(images(), LABELS, SECOND)
    sum(losses.values()).backward()
    expected = slow.forward(images(), "train")
    logits = torch.stack(expected.features) @ method.classifier.weight.detach().T
    logits = logits + method.classifier.bias.detach()
    experts = [slow.experts[block] for block in layout["blocks"]]
    prototypes = slow_smope.prototype_loss(
        [bank.keys for bank in experts],
        [bank.old_keys for bank in experts],
        [bank.frequent for bank in experts],
        TOP_K,
    )
    by_name = {
        "cross_entropy": slow_smope.task_cross_entropy(logits, LABELS, 3, CLASSES),
        "router": 0.3 * slow_smope.router_loss(expected, EPSILON),
        "prototype": 0.2 * prototypes,
    }
    assert losses.keys() == by_name.keys()
    for name, value in by_name.items():
        assert_equal(losses[name], value)
    sum(by_name.values()).backward()
    for block, bank in zip(layout["blocks"], method.experts, strict=True):
        assert_equal(bank.keys.grad, slow.experts[block].keys.grad)
        assert_equal(bank.experts.down.grad, slow.down[block].grad)
        assert_equal(bank.experts.up.grad, slow.up[block].grad)
