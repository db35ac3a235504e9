"""A frozen timm attention with prompt experts beside its tokens.

Shapes: B batch, N tokens (CLS included), H heads, D head width, E experts, K chosen experts, C =
H·D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from smope.backbones.attention import ExtraKey, attend, exporting, heads, project
from smope.backbones.wrapping import AttentionWrapper
from smope.experts.bank import PrefixBank
from smope.experts.routed import RoutedWrapper
from smope.routers.base import Routing

aten = torch.ops.aten


def as_one_key(routing: Routing, values: Tensor, scale: float) -> ExtraKey:
    """The chosen experts of each image and head as the single key that they amount to; values (H,
    E, D).
    """
    with torch.autocast(values.device.type, enabled=False):
        if exporting():
            return _exported_key(routing, values, scale)
        return ExtraKey(*_OneKey.apply(routing.weights, routing.expert_ids, values, scale))


def _exported_key(routing: Routing, values: Tensor, scale: float) -> ExtraKey:
    """As `as_one_key`, in operations that every exporter knows, and without sizes of the batch."""
    logits = routing.weights * scale
    chosen = routing.expert_ids.unsqueeze(-1) == torch.arange(values.shape[1], device=values.device)
    of_all = (logits.softmax(-1).unsqueeze(-1) * chosen).sum(-2)
    return ExtraKey(logits.logsumexp(-1), torch.einsum("bhe,hed->bhd", of_all, values))


class _OneKey(torch.autograd.Function):
    """The log of the sum of the experts' exponentials, and the softmax average of their values.

    Shares serve forward and backward pass alike: half the kernels, small as they are, of the same
    formulas left to autograd.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, ids: Tensor, values: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        logits = weights * scale
        shares = logits.softmax(-1)
        of_all = values.new_zeros(*ids.shape[:2], values.shape[1]).scatter_(-1, ids, shares)
        ctx.save_for_backward(shares, of_all, ids, values)
        ctx.scale = scale
        # The largest term of log_softmax is minus the log of the sum of exponentials, by the
        # largest logit scaled.
        return logits.amax(-1) - logits.log_softmax(-1).amax(-1), torch.einsum(
            "bhe,hed->bhd", of_all, values
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logit: Tensor, d_value: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shares, of_all, ids, values = ctx.saved_tensors
        # compiled, this runs where the forward pass did
        with torch.autocast(values.device.type, enabled=False):
            d_shares = torch.einsum("bhd,hed->bhe", d_value, values).gather(-1, ids)
            d_values = of_all.permute(1, 2, 0) @ d_value.transpose(0, 1)
        d_logits = aten._softmax_backward_data(d_shares, shares, -1, shares.dtype)
        return d_logits.addcmul(shares, d_logit.unsqueeze(-1)) * ctx.scale, None, d_values, None


def attend_by_token(
    q: Tensor, k: Tensor, v: Tensor, scale: float, routing: Routing, values: Tensor
) -> Tensor:
    """Row i = softmax([q_i·k_j·scale for all tokens j, the row's own weights·scale of its chosen
    experts]) · [v; values].

    The formula itself: experts with a logit for each token are no single key, so it keeps (N, N +
    E) attention weights of every image and head for the backward pass.

    Args:
        q: (B, H, N, D).
        k: (B, H, N, D).
        v: (B, H, N, D).
        scale: Usually 1/sqrt(D).
        routing: With a row for each token.
        values: (H, E, D).

    Returns:
        (B, H, N, D), in the precision of v.
    """
    logits = _logits_of_all(routing, scale)
    logits = logits.unflatten(0, (-1, q.shape[2])).transpose(1, 2)
    tokens = (q.to(v.dtype) @ k.to(v.dtype).transpose(-2, -1)).to(logits.dtype) * scale
    shares = torch.cat([tokens, logits], dim=-1).softmax(-1).to(v.dtype)
    experts = values.shape[1]
    return shares[..., :-experts] @ v + shares[..., -experts:] @ values.to(v.dtype)


def _logits_of_all(routing: Routing, scale: float) -> Tensor:
    """The logits of the chosen experts, minus infinity for the others, (rows, H, E)."""
    chosen = routing.weights * scale
    if not exporting():
        none = torch.full_like(routing.scores, -torch.inf)
        return none.scatter(-1, routing.expert_ids, chosen)
    # in operations that every exporter knows
    all_ids = torch.arange(routing.scores.shape[-1], device=chosen.device)
    is_it = routing.expert_ids.unsqueeze(-1) == all_ids
    return torch.where(is_it, chosen.unsqueeze(-1), -torch.inf).amax(-2)


class PromptedAttention(RoutedWrapper, AttentionWrapper):
    """Wraps `attention` (frozen, untouched) and lets each image attend to its chosen experts as
    well.

    Without its wrapper the block computes bit for bit what it did before: see inject.detach.
    """

    bank: PrefixBank

    def attended(self, x: Tensor) -> Tensor:
        attention = self.attention
        q, k, v = heads(attention, x)
        keys, values = self.bank()
        routing = self.route(q, keys)
        if routing.tokens is not None:
            out = attend_by_token(q, k, v, attention.scale, routing, values)
        else:
            out = attend(q, k, v, attention.scale, as_one_key(routing, values, attention.scale))
        return project(attention, x, out)
