"""A prefix joins attention for one pass; without one a wrapped block computes as before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.backbones.wrapping import unwrap, wrap
from smope.errors import UserError
from smope.methods.base import TaskSpan
from smope.methods.deep_l2p import DeepL2P
from smope.prompts.prefix import Prefix, PrefixAttention, prefixed
from tests.tiny import tiny_backbone

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def wrapped(*blocks: int, **options: Any) -> tuple[Backbone, list[PrefixAttention]]:
    backbone = tiny_backbone(**options)
    return backbone, wrap(backbone.vit, blocks, PrefixAttention)


@pytest.mark.parametrize("blocks", [(0, 1, 2, 3, 4), (2, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_without_a_prefix_it_is_the_plain_vit_bit_for_bit(
    blocks: tuple[int, ...], dtype: torch.dtype
) -> None:
    backbone, _ = wrapped(*blocks)
    with torch.no_grad():
        pixels = IMAGES.to(dtype)
        assert torch.equal(backbone.to(dtype)(pixels), tiny_backbone().to(dtype)(pixels))


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=["plain", "norms"])
@pytest.mark.parametrize("gate", [None, torch.tanh], ids=["no gate", "gate"])
def test_attends_to_prefix_and_tokens(options: dict[str, Any], gate: Any) -> None:
    _, (wrapper,) = wrapped(0, **options)
    wrapper, tokens = wrapper.double(), torch.randn(2, 17, 32, dtype=torch.float64)
    keys, values = torch.randn(2, 2, 3, 32, dtype=torch.float64)
    wrapper.prefix = Prefix(keys, values, gate)
    attention = wrapper.attention
    q, k, v = attention.qkv(tokens).view(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
    q, k = attention.q_norm(q), attention.k_norm(k)
    ours, of_values = (rows.view(2, 3, 2, 16).transpose(1, 2) for rows in (keys, values))
    logits = q @ ours.mT / 4
    logits = torch.cat([gate(logits) if gate else logits, q @ k.mT / 4], dim=-1)
    out = (logits.softmax(-1) @ torch.cat([of_values, v], 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(wrapper(tokens), attention.proj(out), rtol=1e-10, atol=1e-10)


def test_a_prefix_far_from_every_token_changes_nothing() -> None:
    backbone, wrappers = wrapped(1)
    far = Prefix(torch.zeros(4, 2, 32), torch.ones(4, 2, 32), lambda logits: logits - 1e9)
    with torch.no_grad():
        with prefixed(wrappers, [far]):
            found = backbone(IMAGES)
        torch.testing.assert_close(found, backbone(IMAGES))


def test_half_precision_keeps_its_precision() -> None:
    _, (wrapper,) = wrapped(0)
    wrapper.prefix = Prefix(torch.randn(2, 3, 32), torch.randn(2, 3, 32))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert wrapper(torch.randn(2, 17, 32)).dtype == torch.bfloat16


def test_a_prefix_is_for_one_pass() -> None:
    backbone, wrappers = wrapped(0, 2)
    rows = torch.randn(2, 2, 4, 3, 32)
    with torch.no_grad():
        plain = backbone(IMAGES)
        with prefixed(wrappers, [Prefix(*row) for row in rows]):
            assert not torch.allclose(backbone(IMAGES), plain)
        assert torch.equal(backbone(IMAGES), plain)


def test_masks_and_other_attentions_are_refused() -> None:
    backbone, (wrapper,) = wrapped(1)
    with pytest.raises(
        UserError, match="attn_mask / is_causal: a block with prompts attends to all tokens"
    ):
        wrapper(torch.randn(1, 17, 32), is_causal=True)
    with pytest.raises(
        UserError, match=r"the attention of block 1 is a PrefixAttention; prompts need timm"
    ):
        wrap(backbone.vit, [0, 1], PrefixAttention)
    with pytest.raises(
        UserError, match=r"method\.e_blocks must be different numbers in 0\.\.6 .*got \[9\]"
    ):
        wrap(backbone.vit, [9], PrefixAttention, "method.e_blocks")
    unwrap(backbone.vit)
    assert not any(isinstance(block.attn, PrefixAttention) for block in backbone.vit.blocks)


def make(depth: int = 7) -> DeepL2P:
    torch.manual_seed(0)
    backbone = tiny_backbone(depth=depth)
    return DeepL2P(backbone, 4, pool_size=6, length=2, top_k=2, blocks=[1, 3]).train()


def step(method: DeepL2P) -> list[Tensor]:
    """The loss of one batch and the prompts' gradients."""
    method.zero_grad()
    losses = method.losses(IMAGES, torch.tensor([0, 1, 0, 1]), TaskSpan(0, 0, 2))
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in method.prompt_parameters())]


def test_the_graph_of_a_step_is_let_go() -> None:
    method = make()
    step(method)
    assert all(
        torch.equal(a, b) for a, b in zip(step(copy.deepcopy(method)), step(method), strict=True)
    )


def test_recomputing_changes_no_step() -> None:
    method = make()
    before = step(method)
    method.backbone.recompute = True
    assert all(torch.equal(a, b) for a, b in zip(step(method), before, strict=True))


def test_half_precision_compares_in_full_precision() -> None:
    method = make().eval()
    seen: list[Tensor] = []
    choose = method.choose
    method.choose = lambda query: seen.append(query) or choose(query)  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = method.features(IMAGES)
        assert torch.is_autocast_enabled("cpu")
    assert seen[0].dtype == torch.float32 and torch.isfinite(features).all()


def test_compiled_it_takes_the_same_step() -> None:
    """The pass for the query and the one with prompts are two graphs of the same blocks."""
    method = make(depth=5)
    before = step(method)
    torch.compiler.reset()
    method.backbone.compile(backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(step(method), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
