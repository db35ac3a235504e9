"""Experts beside the MLP or the qkv projection a second time, written out by image and expert.

For one image, with the input x (N, C) of the layer that the experts are beside:
    query    mean of x over all N tokens
    score_e  key_e · query, unscaled; K are chosen as in slow_smope.py
    share_k  exp(score_k / sqrt(C)) over their sum for the K chosen ones
    mlp      layer(x) + 0.1 · sum of share_k · relu(x · down_kᵀ) · up_k
    lora     the weight of the layer is W + 0.1 · sum of share_k · (down_kᵀ · up_k)ᵀ
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .slow_smope import Mode, SlowExperts, SlowViT, layer_norm, softmax


@dataclass
class SlowBeside(SlowViT):
    """`experts` have one head and no values; `down` (E, r, C) and `up` (E, r, W) of each block."""

    placement: str = "mlp"
    down: dict[int, Tensor] = field(default_factory=dict)
    up: dict[int, Tensor] = field(default_factory=dict)

    def attention(self, block: int, x: Tensor, mode: Mode, scores: list, chosen: list) -> Tensor:
        plain = SlowViT(dict(self.weights), self.heads, {}, self.top_k, self.epsilon)
        if self.placement == "lora" and block in self.experts:
            name = f"blocks.{block}.attn.qkv.weight"
            for expert, share in self._shares(block, x, mode, scores, chosen):
                change = (self.down[block][expert].T @ self.up[block][expert]).T
                plain.weights[name] = plain.weights[name] + 0.1 * share * change
        return plain.attention(block, x, mode, [], [])

    def _block(self, block: int, x: Tensor, mode: Mode, scores: list, chosen: list) -> Tensor:
        if self.placement == "lora" or block not in self.experts:
            return super()._block(block, x, mode, scores, chosen)
        name, w = f"blocks.{block}", self.weights
        attended = self.attention(block, layer_norm(x, w, f"{name}.norm1"), mode, scores, chosen)
        x = x + attended * w.get(f"{name}.ls1.gamma", 1.0)
        inner = layer_norm(x, w, f"{name}.norm2")
        hidden = inner @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"]
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        out = hidden @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]
        for expert, share in self._shares(block, inner, mode, scores, chosen):
            for row in range(self.down[block].shape[1]):
                number = (inner @ self.down[block][expert, row]).clamp(min=0)
                out = out + 0.1 * share * number[:, None] * self.up[block][expert, row]
        return x + out * w.get(f"{name}.ls2.gamma", 1.0)

    def _shares(
        self, block: int, x: Tensor, mode: Mode, scores: list, chosen: list
    ) -> list[tuple[int, Tensor]]:
        query = sum(x[token] for token in range(len(x))) / len(x)
        keys = self.experts[block].keys[0]
        found = torch.stack([(key * query).sum() for key in keys])
        picked = self._choose(block, 0, found.tolist(), mode)
        scores.append([found])
        chosen.append([picked])
        width = math.sqrt(x.shape[1])
        return list(zip(picked, softmax([found[e] / width for e in picked]), strict=True))


def slow_experts(keys: Tensor) -> SlowExperts:
    """Experts with keys (1, E, C)."""
    return SlowExperts.fresh(keys.detach().clone().requires_grad_(), torch.zeros(0))
