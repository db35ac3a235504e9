"""A frozen timm attention with prompt experts beside its tokens.

Shapes: B batch, N tokens (CLS included), H heads, D head width, E experts, K chosen experts, C = H·D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention  # pyright: ignore[reportPrivateImportUsage] (its oldest home)
from torch import Tensor, nn

from smope.errors import UserError
from smope.experts.bank import ExpertBank
from smope.routers.base import Router, Routing
from smope.routers.dense import Dense


def expert_attention(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, values: Tensor, scale: float) -> Tensor:
    """Softmax attention over K experts and N tokens, where the experts' logits are the same for every row.

    Row i = softmax([weights·scale, q_i·k_j·scale]) · [values; v].
    q, k, v (B, H, N, D), weights (B, H, K) unscaled, values (B, H, K, D) -> (B, H, N, D).

    The experts' logits ride in one extra coordinate (1 in every query, the weight in an expert's key, 0 in a token's),
    so that one fused kernel does it all: no (N, N+K) matrix is kept for the backward pass.
    """
    width = q.shape[-1]
    q = F.pad(q, (0, 1), value=1.0)
    k = torch.cat([F.pad(weights.unsqueeze(-1), (width, 0)).to(k.dtype), F.pad(k, (0, 1))], dim=2)
    v = F.pad(torch.cat([values.to(v.dtype), v], dim=2), (0, 1))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :width]


def gather_values(values: Tensor, expert_ids: Tensor) -> Tensor:
    """Rows of values (H, E, D) chosen by expert_ids (B, H, K) -> (B, H, K, D)."""
    heads = torch.arange(values.shape[0], device=values.device).view(1, -1, 1)
    return values[heads, expert_ids]


def plain_attention(attention: object, where: str) -> Attention:
    """`attention` if the experts can join it, else UserError; `where` names it in the message."""
    if type(attention) is not Attention:
        raise UserError(
            f"backbone: {where} is a {type(attention).__name__}; prompt experts need timm's plain Attention (one qkv "
            "projection, softmax over all tokens, no rotary positions); choose a plain ViT such as vit_base_patch16_224"
        )
    return attention


class PromptedAttention(nn.Module):
    """Wraps `attention` (frozen, untouched) and lets each image attend to its chosen experts as well.

    After a forward pass `routing` holds the decision, for losses and statistics. `dense` switches to all experts
    (warm-up). Without its wrapper the block computes bit for bit what it did before: see inject.detach.
    """

    attention: Attention
    bank: ExpertBank
    router: Router

    def __init__(self, attention: Attention, bank: ExpertBank, router: Router) -> None:
        super().__init__()
        self.attention = attention
        self.bank = bank
        self.router = router
        self.dense = False
        self.routing: Routing | None = None
        self._dense_router = Dense(router.top_k)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        if attn_mask is not None or is_causal:
            raise UserError("attn_mask / is_causal: a block with prompt experts attends to all tokens; pass neither")
        attention = self.attention
        batch, tokens, _ = x.shape
        # The number of heads is known; the width is what qkv gives (timm allows heads that do not add up to C).
        q, k, v = attention.qkv(x).reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = attention.q_norm(q), attention.k_norm(k)
        keys, values = self.bank()
        router = self._dense_router if self.dense else self.router
        routing = router(q.mean(dim=2, dtype=keys.dtype), keys, self.bank.state)
        self.routing = routing
        out = expert_attention(q, k, v, routing.weights, gather_values(values, routing.expert_ids), attention.scale)
        return self._project(x, out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, out: Tensor) -> Tensor:
        """The rest of timm's attention; `norm` and `gate` exist in some releases and options only."""
        attention = self.attention
        norm, gate = getattr(attention, "norm", None), getattr(attention, "gate", None)
        if norm is not None:
            out = norm(out)
        if gate is not None:
            out = out * gate(x).sigmoid()
        return attention.proj_drop(attention.proj(out))
