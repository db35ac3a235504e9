"""Softmax attention over the tokens and, in blocks with prompt experts, over one extra key.

The extra key stands for all experts of a head. An expert's logit is the same for every row, so the
experts together act like a single key: its logit is the log of the sum of their exponentials, its
value their softmax average. This is exact, costs one column for any number of experts, and keeps no
more for the backward pass than plain attention does.

There are three ways to compute it, equal up to rounding; `attend` chooses. A fourth one, public
attention over N + 1 keys with the logit in spare columns of q and k, is slower on CPUs and on an
H100 (benchmarks/results/gpu.md).
    _Products  Matrix products for a few heads at a time, so that (N, N) matrices are short-lived.
    _Fused     torch's flash kernel on the tokens alone; the extra key is merged in by means of the
               log-sum-exp of each row.
    _plain     The formula itself in public operations, for graphs that are exported.

Shapes: B batch, R rows (queries), N tokens, H heads, D head width, C = H·D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention  # pyright: ignore[reportPrivateImportUsage] (its oldest home)
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**19  # attention weights in the works at once: 2 MB in float32, what a core's caches hold
aten = torch.ops.aten
# torch 2.6 has no such function
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


@dataclass(frozen=True)
class ExtraKey:
    """One extra key of each head, for which every row has the same logit.

    Attributes:
        logit: (B, H), scale included, in float32 or float64.
        value: (B, H, D), in float32 or float64.
    """

    logit: Tensor
    value: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, extra: ExtraKey | None = None) -> Tensor:
    """Row i = softmax([q_i·k_j·scale for all tokens j, extra.logit]) · [v; extra.value].

    Args:
        q: (B, H, R, D).
        k: (B, H, N, D).
        v: (B, H, N, D).
        scale: Factor of the tokens' logits, usually 1/sqrt(D).
        extra: The extra key; None for attention over the tokens alone.

    Returns:
        (B, H, R, D), in the precision of v.
    """
    # under autocast the norms of q and k, where there are any, give float32
    q, k = q.to(v.dtype), k.to(v.dtype)
    if exporting():
        return _plain(q, k, v, scale, extra)
    if in_products(v):
        none = v.new_empty(0)
        logit, value = (extra.logit.to(v.dtype), extra.value.to(v.dtype)) if extra else (none, none)
        return _Products.apply(q, k, v, logit, value, scale)
    if extra is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return _Fused.apply(q, k, v, extra.logit, extra.value, scale)


def exporting() -> bool:
    """Whether torch.export, torch.onnx.export or torch.jit.trace records a graph now.

    Such a graph runs elsewhere and for batches of other sizes. So it must consist of public
    operations, without loops that depend on sizes and without kernels of one device.
    """
    return _is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float, extra: ExtraKey | None) -> Tensor:
    """As `attend`, in operations that every exporter knows."""
    scores = (q @ k.transpose(-2, -1)) * scale
    if extra is not None:
        column = extra.logit.to(v.dtype)[..., None, None].expand(-1, -1, scores.shape[2], 1)
        scores = torch.cat([scores, column], dim=-1)
        v = torch.cat([v, extra.value.to(v.dtype).unsqueeze(2)], dim=2)
    return scores.softmax(-1) @ v


def in_products(v: Tensor) -> bool:
    """Whether matrix products are the way for tensors like `v`.

    On a CPU: where oneDNN computes them. Its calls are too dear for the small tiles of the flash
    kernel, which there takes 2.2 times as long (AMD Zen 4, 96 heads of 197 tokens, forward and
    backward). Elsewhere it takes 0.87 times as long (an AMD EPYC without AVX-512; 0.75 times for
    the forward pass alone).
    """
    if _always_in_products:
        return True
    if v.device.type == "cuda":
        return v.dtype == torch.float64 or v.shape[-1] % 8 != 0  # the kernels have neither
    if v.device.type != "cpu":
        return True
    exact = v.dtype in (torch.float32, torch.float64)
    return exact and not torch.compiler.is_compiling() and onednn_computes_products()


_always_in_products = False


@contextmanager
def always_in_products() -> Iterator[None]:
    """For counting operations: the same number on every processor, and the extra key in it."""
    global _always_in_products
    _always_in_products = True
    try:
        yield
    finally:
        _always_in_products = False


def onednn_computes_products() -> bool:
    """Whether oneDNN computes float32 products in this process (see training/device.py)."""
    return getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None) == "bf16"


class _Products(torch.autograd.Function):
    """The attention weights are computed again in the backward pass: as in a flash kernel only q,
    k and v are kept.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, logit: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        ctx.shape, ctx.scale = q.shape, scale
        batch, heads, rows, width = q.shape
        if logit.numel():
            k = torch.cat([k, k.new_zeros(batch, heads, 1, width)], dim=2)
            v = torch.cat([v, value.unsqueeze(2)], dim=2)
        q, k, v, logit = (q * scale).flatten(0, 1), _flat(k), _flat(v), logit.flatten()
        out, gate = torch.empty_like(q), torch.empty_like(q[..., :1])
        for part, scores, weights in _chunks(q, k, 2):
            _weights(q[part], k[part], logit[part], scores, weights)
            torch.bmm(weights, v[part], out=out[part])
            gate[part] = weights[..., -1:]
        if any(ctx.needs_input_grad[:3]):
            ctx.save_for_backward(q, k, v, logit)
        # nothing below learns: what the rows gave to the extra key is all that its gradients need
        else:
            ctx.save_for_backward(out, gate, value)
        return out.view(batch, heads, rows, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not any(ctx.needs_input_grad[:3]):
            out, gate, value = ctx.saved_tensors
            gate = gate.view(*ctx.shape[:3], 1)
            d_logit = _logit_gradient(grad, out.view(ctx.shape), gate, value)
            return None, None, None, d_logit, (gate.mT @ grad).squeeze(2), None
        q, k, v, logit = ctx.saved_tensors
        batch, heads, *_ = ctx.shape
        grad = _flat(grad)
        d_q, d_k, d_v, d_logit = (
            torch.empty_like(q),
            torch.empty_like(k),
            torch.empty_like(v),
            torch.empty_like(logit),
        )
        for part, scores, weights, d_weights in _chunks(q, k, 3):
            _weights(q[part], k[part], logit[part], scores, weights)
            torch.bmm(weights.mT, grad[part], out=d_v[part])
            torch.bmm(grad[part], v[part].mT, out=d_weights)
            d_scores = aten._softmax_backward_data.out(
                d_weights, weights, -1, q.dtype, grad_input=scores
            )
            torch.bmm(d_scores, k[part], out=d_q[part])
            torch.bmm(d_scores.mT, q[part], out=d_k[part])
            if logit.numel():
                d_logit[part] = d_scores[..., -1].sum(-1)
        d_q, d_k, d_v = (
            d.view(batch, heads, -1, d.shape[-1]) for d in (d_q.mul_(ctx.scale), d_k, d_v)
        )
        if not logit.numel():
            return d_q, d_k, d_v, None, None, None
        return d_q, d_k[:, :, :-1], d_v[:, :, :-1], d_logit.view(batch, heads), d_v[:, :, -1], None


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[2:])


def _chunks(q: Tensor, k: Tensor, number: int) -> Iterator[tuple[Any, ...]]:
    """Slices of the flattened heads, each with `number` scratch matrices (heads, R, N), the same
    memory every time.
    """
    total, rows, columns = len(q), q.shape[1], k.shape[1]
    step = max(1, min(total, CHUNK // (rows * columns)))
    scratch = q.new_empty(number, step, rows, columns)
    for start in range(0, total, step):
        part = slice(start, min(start + step, total))
        yield part, *scratch[:, : part.stop - part.start]


def _weights(q: Tensor, k: Tensor, logit: Tensor, scores: Tensor, weights: Tensor) -> None:
    torch.bmm(q, k.mT, out=scores)
    if logit.numel():
        scores[..., -1] = logit.unsqueeze(-1)
    torch.softmax(scores, -1, out=weights)


class _Fused(torch.autograd.Function):
    """The tokens' softmax by a flash kernel, then each row moved towards the extra key by the share
    that it is due.

    With a row's log-sum-exp over the tokens, the extra key's share is sigmoid(logit - lse). The
    kernel's backward pass reads the row's log-sum-exp and output: given those of the joint softmax,
    it returns the joint gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, logit: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        # Nothing in place: compiled by torch 2.11, what is saved would be as it was before.
        out, lse, rest = _fused_forward(q, k, v, scale)
        rows, padding = lse.tensor_split([q.shape[2]], dim=-1)  # some kernels pad it
        logit = logit.unsqueeze(-1)
        gate = torch.sigmoid(logit - rows).unsqueeze(-1)
        out = out.lerp(value.unsqueeze(2).to(out.dtype), gate.to(out.dtype))
        lse = torch.logaddexp(rows, logit)
        lse = torch.cat([lse, padding], dim=-1) if padding.shape[-1] else lse
        ctx.scale, ctx.rest = scale, rest
        if any(ctx.needs_input_grad[:3]):
            ctx.save_for_backward(out, gate, value, q, k, v, lse)
        else:
            ctx.save_for_backward(out, gate, value)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        out, gate, value, *tokens = ctx.saved_tensors
        d_logit = _logit_gradient(grad, out, gate, value)
        # A head's shares times all heads' gradients: these lie row by row, and to take them apart
        # is to copy them.
        of_all = gate.squeeze(-1).to(grad.dtype) @ grad.transpose(1, 2).flatten(2)
        d_value = (
            of_all.unflatten(-1, (grad.shape[1], -1)).diagonal(dim1=1, dim2=2).mT.to(value.dtype)
        )
        if not tokens:
            return None, None, None, d_logit, d_value, None
        q, k, v, lse = tokens
        return (
            *_fused_backward(grad, q, k, v, out, lse, ctx.rest, ctx.scale),
            d_logit,
            d_value,
            None,
        )


def _logit_gradient(grad: Tensor, out: Tensor, gate: Tensor, value: Tensor) -> Tensor:
    """(B, H), from the gradient of out (B, H, R, D), the shares gate (B, H, R, 1) and value (B, H,
    D).
    """
    towards = (value.unsqueeze(2).to(out.dtype) - out).mul_(grad)
    return (gate.squeeze(-1) * towards.sum(-1, dtype=gate.dtype)).sum(-1)


def _fused_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """Output, log-sum-exp of each row in float32, and what else the backward pass of the same
    kernel asks for.
    """
    if q.device.type == "cpu":
        return *aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale), ()
    if _has_flash(q):
        out, lse, *rest, _ = aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
    else:
        out, lse, *rest = aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, scale=scale
        )
    return out, lse, tuple(rest)


def _fused_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rest: tuple[Any, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type == "cpu":
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
        return backward(grad, q, k, v, out, lse, 0.0, False, scale=scale)
    if _has_flash(q):
        *lengths, seed, offset = rest
        backward = aten._scaled_dot_product_flash_attention_backward
        return backward(grad, q, k, v, out, lse, *lengths, 0.0, False, seed, offset, scale=scale)
    backward = aten._scaled_dot_product_efficient_attention_backward
    return backward(
        grad, q, k, v, None, out, lse, *rest, 0.0, [True, True, True, False], scale=scale
    )[:3]


def _has_flash(q: Tensor) -> bool:
    """CUDA's flash kernel takes half precision only, and a compute capability of 8 or more."""
    return (
        q.dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(q.device)[0] >= 8
    )


def heads(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of timm's attention, (B, H, N, D) each, from its input x (B, N, C)."""
    q, k, v = apart(attention.qkv(x), 3, attention.num_heads)
    return attention.q_norm(q), attention.k_norm(k), v


def apart(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """A joint projection (B, N, parts·H·D) as `parts` tensors (B, H, N, D), views of it.

    Taken apart before heads and tokens change places, the gradient is put together in one copy;
    timm's order of the same views takes two.
    """
    # The number of heads is known; the width is what qkv gives (timm allows heads that do not add
    # up to C).
    return tuple(part.transpose(1, 2) for part in x.unflatten(-1, (parts, heads, -1)).unbind(2))


def project(attention: Attention, x: Tensor, out: Tensor) -> Tensor:
    """The rest of timm's attention: x (B, R, C) its input and out (B, H, R, D) -> (B, R, C).

    `norm` and `gate` exist in some releases and options only.
    """
    out = out.transpose(1, 2).flatten(2)
    norm, gate = getattr(attention, "norm", None), getattr(attention, "gate", None)
    if norm is not None:
        out = norm(out)
    if gate is not None:
        out = out * gate(x).sigmoid()
    return attention.proj_drop(attention.proj(out))
