"""Frozen weights held in half precision give, bit for bit, what autocast over the float32 weights
gives.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smope.backbones.held import HeldConv2d, HeldLinear, hold_frozen_weights
from smope.methods.base import TaskSpan
from smope.methods.smope import SMoPE
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.training.precision import hold_frozen
from tests.tiny import tiny_backbone

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"qkv_bias": False},
    "norms of q and k, layer scale": {"qk_norm": True, "init_values": 0.5},
}
kinds = pytest.mark.parametrize("kind", KINDS)
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def two(kind: str, dtype: torch.dtype, depth: int = 7, **options: Any) -> tuple[SMoPE, SMoPE]:
    """The same method without and with held weights."""
    torch.manual_seed(0)
    backbone = tiny_backbone(**{"qkv_bias": True, "depth": depth, **KINDS[kind]})
    plain = SMoPE(
        backbone, 4, AdaptiveNoise(3), num_experts=9, router_loss_weight=0.1, **options
    ).train()
    held = copy.deepcopy(plain)
    hold_frozen_weights(held.backbone, dtype)
    return plain, held


def step(method: SMoPE, dtype: torch.dtype, enabled: bool = True) -> list[Tensor]:
    """Logits, losses, and the gradients of all that trains and of the images."""
    draw = torch.Generator().manual_seed(1)
    images, labels = (
        torch.rand(4, 3, 32, 32, generator=draw, requires_grad=True),
        torch.tensor([0, 1, 0, 1]),
    )
    with torch.autocast("cpu", dtype, enabled=enabled):
        losses = list(method.losses(images, labels, TaskSpan(0, 0, 2)).values())
        logits = method(images)
    trained = [*method.prompt_parameters(), *method.classifier.parameters(), images]
    return [logits, *losses, *torch.autograd.grad(torch.stack(losses).sum(), trained)]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@kinds
@dtypes
@pytest.mark.parametrize("space", ["head", "input"])
def test_outputs_and_gradients_are_those_of_autocast(
    kind: str, dtype: torch.dtype, space: Any
) -> None:
    plain, held = two(kind, dtype, expert_space=space)
    assert equal(step(held, dtype), step(plain, dtype))
    assert equal(step(held, dtype, enabled=False), step(plain, dtype, enabled=False)), (
        "full precision sees no copy"
    )
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    assert equal(step(held, other), step(plain, other)), "nor does another one"


def test_no_weight_is_cast_in_a_step() -> None:
    plain, held = two("plain", torch.bfloat16)

    def casts(method: SMoPE) -> int:
        with torch.profiler.profile() as profile:
            step(method, torch.bfloat16)
        return sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy")

    # four a block, the patches', and the last block's qkv, which goes in two parts
    layers = 7 * 4 + 1 + 1
    assert casts(plain) - casts(held) == 2 * 2 * layers, "two passes; weight and bias"


def test_what_is_kept_and_what_trains_does_not_change() -> None:
    plain, held = two("plain", torch.bfloat16)
    assert {p.dtype for p in held.parameters()} == {torch.float32}
    before, after = plain.state_dict(), held.state_dict()
    assert list(before) == list(after) and all(
        torch.equal(before[key], after[key]) for key in before
    )
    layers = [type(module) for module in held.modules()]
    assert layers.count(HeldLinear) == 7 * 4 and layers.count(HeldConv2d) == 1
    assert type(held.classifier) is nn.Linear


def test_what_a_method_has_learned_leaves_held_weights_alone() -> None:
    _, held = two("plain", torch.bfloat16)
    held.load_trained_state(held.trained_state())
    layers = [module for module in held.modules() if isinstance(module, HeldLinear | HeldConv2d)]
    assert layers and all(layer.held is not None for layer in layers)


def test_other_weights_take_the_place_of_those_held() -> None:
    plain, held = two("plain", torch.bfloat16)
    state = {
        key: value * 1.25 for key, value in plain.state_dict().items() if value.is_floating_point()
    }
    for method in (plain, held):
        method.load_state_dict(state, strict=False)
    assert equal(step(held, torch.bfloat16), step(plain, torch.bfloat16))
    hold_frozen_weights(held.backbone, torch.bfloat16)
    assert equal(step(held, torch.bfloat16), step(plain, torch.bfloat16))
    assert held.double().backbone.vit.patch_embed.proj.weight.dtype == torch.float64
    assert equal(step(held.float(), torch.bfloat16), step(plain.double().float(), torch.bfloat16))


def test_only_a_frozen_backbone_holds_and_only_in_half_precision() -> None:
    for precision, unfrozen in (("float32", False), ("float64", False), ("bfloat16", True)):
        method = two("plain", torch.bfloat16)[0]
        if unfrozen:
            method.backbone.unfreeze()
        hold_frozen(method, precision)
        assert not any(isinstance(module, (HeldLinear, HeldConv2d)) for module in method.modules())


def test_compiled_it_takes_the_same_step() -> None:
    """A block with experts, one without, and the last one: tracing each takes a second."""
    held = two("plain", torch.bfloat16, depth=3, blocks=[0])[1]
    before = step(held, torch.bfloat16)
    torch.compiler.reset()
    held.backbone.compile(backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(step(held, torch.bfloat16), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=1e-2)
