"""Attention with one extra key, computed in every way there is, equals a softmax written out;
gradients included.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Attention
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from smope.backbones import attention as module
from smope.backbones.attention import (
    ExtraKey,
    _Fused,
    _Products,
    attend,
    heads,
    in_products,
    project,
)

SCALE = 0.3
WAYS = {"products": _Products, "fused": _Fused}
BATCH, HEADS, TOKENS, WIDTH = 3, 2, 37, 16
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def written_out(q: Tensor, k: Tensor, v: Tensor, logit: Tensor, value: Tensor) -> Tensor:
    """Without an extra key where logit is empty."""
    scores = q @ k.mT * SCALE
    if logit.numel():
        scores = torch.cat([scores, logit[..., None, None].expand(*scores.shape[:3], 1)], dim=-1)
        v = torch.cat([v, value.unsqueeze(2)], dim=2)
    return scores.softmax(-1) @ v


def inputs(rows: int, dtype: torch.dtype, extra: bool = True) -> list[Tensor]:
    draw = torch.Generator().manual_seed(rows)
    shapes: list[tuple[int, ...]] = [
        (BATCH, HEADS, number, WIDTH) for number in (rows, TOKENS, TOKENS)
    ]
    shapes += [(BATCH, HEADS), (BATCH, HEADS, WIDTH)] if extra else [(0,), (0,)]
    return [
        (2 * torch.randn(shape, generator=draw, dtype=dtype)).requires_grad_() for shape in shapes
    ]


def close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [TOKENS, 1])
@pytest.mark.parametrize(
    ("way", "extra"), [("products", False), ("products", True), ("fused", True)]
)
@pytest.mark.parametrize("chunk", [1, 5 * TOKENS * TOKENS, module.CHUNK])
def test_equals_the_softmax_written_out(
    way: str,
    extra: bool,
    rows: int,
    dtype: torch.dtype,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    given = inputs(rows, dtype, extra)
    out, expected = WAYS[way].apply(*given, SCALE), written_out(*given)
    assert close(out, expected, TOLERANCE[dtype])
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    used = given if extra else given[:3]
    pairs = zip(*(torch.autograd.grad(o, used, direction) for o in (out, expected)), strict=True)
    assert all(close(ours, theirs, TOLERANCE[dtype]) for ours, theirs in pairs)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_where_only_the_extra_key_learns(way: str) -> None:
    """As in the first prompted block; then q, k and v are not kept."""
    q, k, v, logit, value = inputs(TOKENS, torch.float64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        out = WAYS[way].apply(q.detach(), k.detach(), v.detach(), logit, value, SCALE)
    assert sum(x.numel() for x in kept) < 1.2 * out.numel()
    direction = torch.randn_like(out)
    ours = torch.autograd.grad(out, (logit, value), direction)
    theirs = torch.autograd.grad(written_out(q, k, v, logit, value), (logit, value), direction)
    assert all(close(mine, its, 1e-12) for mine, its in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_by_differences(way: str) -> None:
    given = [x[:1, :, :5].detach().requires_grad_() if x.ndim == 4 else x[:1].detach().requires_grad_()
             for x in inputs(TOKENS, torch.float64)]  # fmt: skip
    assert torch.autograd.gradcheck(lambda *x: WAYS[way].apply(*x, SCALE), given)


@pytest.mark.parametrize("way", WAYS)
def test_keeps_no_matrix_of_all_pairs(way: str) -> None:
    kept: list[Tensor] = []
    given = inputs(TOKENS, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        out = WAYS[way].apply(*given, SCALE)
    assert sum(x.numel() for x in kept) <= 4.2 * out.numel(), "q, k, v and at most the output"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_extreme_logits(way: str, logit: float) -> None:
    q, k, v, _, value = inputs(TOKENS, torch.float32)
    far = torch.full((BATCH, HEADS), logit, requires_grad=True)
    out = WAYS[way].apply(q, k, v, far, value, SCALE)
    alone = (
        value.unsqueeze(2).expand_as(out)
        if logit > 0
        else written_out(q, k, v, v.new_empty(0), value)
    )
    assert close(out, alone, 3e-6)
    gradients = torch.autograd.grad(out.square().sum(), (q, k, v, far, value))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16_is_close_and_stays_bfloat16() -> None:
    given = inputs(TOKENS, torch.float32)
    q, k, v = (x.bfloat16() for x in given[:3])
    out = attend(q, k, v, SCALE, ExtraKey(given[3], given[4]))
    assert out.dtype == torch.bfloat16
    expected = written_out(q.float(), k.float(), v.float(), *given[3:])
    assert close(out.float(), expected, 2e-2)
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad(out, given, direction.bfloat16())
    theirs = torch.autograd.grad(expected, given, direction)
    assert [gradient.dtype for gradient in ours] == [torch.float32] * 5
    assert all(close(mine, its, 3e-2) for mine, its in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("onednn", [True, False])
def test_which_way_is_taken_on_a_cpu(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onednn_computes_products", lambda: onednn)
    ways = {
        dtype: in_products(torch.empty(1, dtype=dtype))
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    }
    assert ways == {torch.float32: onednn, torch.float64: onednn, torch.bfloat16: False}


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "memory-efficient"])
def test_the_calls_of_cuda_kernels_fit_this_torch(
    flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes and arguments are checked without a device; the numbers by the test below where there
    is one.
    """
    monkeypatch.setattr(module, "_has_flash", lambda _: flash)
    with FakeTensorMode():
        qkv = torch.empty(
            2,
            TOKENS,
            3,
            HEADS,
            WIDTH,
            device="cuda",
            dtype=torch.bfloat16 if flash else torch.float32,
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        out, lse, rest = module._fused_forward(q, k, v, SCALE)
        gradients = module._fused_backward(out, q, k, v, out, lse, rest, SCALE)
    assert lse.shape[-1] >= TOKENS and lse.dtype == torch.float32
    assert [x.shape for x in (out, *gradients)] == [(2, HEADS, TOKENS, WIDTH)] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)]
)
def test_on_cuda(dtype: torch.dtype, tolerance: float) -> None:
    given = [x.detach().cuda().requires_grad_() for x in inputs(TOKENS, torch.float32)]
    q, k, v = (x.to(dtype) for x in given[:3])
    assert not in_products(v)
    out = attend(q, k, v, SCALE, ExtraKey(given[3], given[4]))
    expected = written_out(q.float(), k.float(), v.float(), *given[3:])
    assert close(out.float(), expected, tolerance)
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad(out, given, direction.to(dtype))
    theirs = torch.autograd.grad(expected, given, direction)
    assert all(close(mine, its, 2 * tolerance) for mine, its in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": True}, {"qk_norm": True}, {"attn_head_dim": 8}], ids=str
)
def test_the_parts_make_up_timm_s_attention(options: dict[str, Any]) -> None:
    if missing := set(options) - set(inspect.signature(Attention).parameters):
        pytest.skip(f"this timm has no {missing}")
    torch.manual_seed(0)
    attention = Attention(32, 2, norm_layer=torch.nn.LayerNorm, **options).double()
    x = torch.randn(2, TOKENS, 32, dtype=torch.float64)
    ours = project(attention, x, attend(*heads(attention, x), attention.scale))
    assert close(ours, attention(x), 1e-12)
