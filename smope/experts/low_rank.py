"""Experts of low rank: what adapters and LoRA have in common.

Shapes: B batch, N tokens, C width of the input, W width of the output, E experts, K chosen experts,
r rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 0.1  # AdaptFormer's; in LoRA it is alpha / r. Without it the rates of prefixes are too high


class LowRankExperts(nn.Module):
    """E pairs of a projection to r numbers and one back, of which each image uses K.

    Nothing here knows routers: `forward` takes the experts of each image, and `together` gives all
    images the same ones, such as one adapter for all tasks (E = 1) or that of a task (E tasks).

    Parameters  down (E, r, C), uniform in ±1/sqrt(C); up (E, r, W), zeros, so that a new expert
                adds nothing.

    Args:
        num_experts: E.
        rank: r.
        width_in: C.
        width_out: W.
        scale: what the output is multiplied by.
    """

    def __init__(
        self,
        num_experts: int,
        rank: int,
        width_in: int,
        width_out: int,
        scale: float = SCALE,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(fresh_down(torch.empty(num_experts, rank, width_in)))
        self.up = nn.Parameter(torch.zeros(num_experts, rank, width_out))

    def forward(self, tokens: Tensor, expert_ids: Tensor, shares: Tensor) -> Tensor:
        """scale · the sum over k of shares_k · activation(tokens · down_kᵀ) · up_k.

        The chosen experts are copied for each image, unless an image uses all experts: then all
        images share them. With 5 of 25 experts of rank 4, a copy takes about half the time of
        computing all experts (768 wide, 197 tokens, forward and backward, one CPU core).

        Args:
            tokens: (B, N, C).
            expert_ids: (B, K) int64, in any order, each at most once.
            shares: (B, K), the weight of each.

        Returns:
            (B, N, W).
        """
        num_experts, rank, _ = self.down.shape
        if expert_ids.shape[-1] == num_experts:
            down, up = self.down.flatten(0, 1), self.up.flatten(0, 1)
            shares = torch.zeros_like(shares).scatter(-1, expert_ids, shares)
        else:
            down, up = (_chosen(experts, expert_ids) for experts in (self.down, self.up))
        hidden = self.activation(tokens @ down.transpose(-1, -2)).unflatten(-1, (-1, rank))
        weighted = hidden * (self.scale * shares[:, None, :, None]).to(hidden.dtype)
        return weighted.flatten(-2) @ up

    def together(self, tokens: Tensor, used: slice = slice(None)) -> Tensor:
        """scale · the sum over e of activation(tokens · down_eᵀ) · up_e, the same for all images.

        Args:
            tokens: (B, N, C).
            used: which of the E take part, such as slice(2, 3): the third alone.

        Returns:
            (B, N, W).
        """
        down, up = self.down[used].flatten(0, 1), self.up[used].flatten(0, 1)
        return self.scale * (self.activation(tokens @ down.T) @ up)

    def activation(self, hidden: Tensor) -> Tensor:
        """What happens between the two projections: nothing."""
        return hidden


def fresh_down(rows: Tensor) -> Tensor:
    """New rows like these (..., C), uniform in ±1/sqrt(C)."""
    bound = rows.shape[-1] ** -0.5
    return torch.empty_like(rows).uniform_(-bound, bound)


def _chosen(experts: Tensor, expert_ids: Tensor) -> Tensor:
    """experts (E, r, W), expert_ids (B, K) -> (B, K·r, W).

    An embedding, because its backward pass takes a half to a fifth of the time of an index's.
    """
    rows = F.embedding(expert_ids, experts.flatten(1))
    return rows.unflatten(-1, experts.shape[1:]).flatten(1, 2)
