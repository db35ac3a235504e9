"""LoRA on a linear layer, such as the joint projection to q, k and v (Hu et al. 2022, arXiv
2106.09685).

Shapes: C width of the input, W width of the output, E experts, T tasks, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smope.experts.low_rank import LowRankExperts


class LoRA(LowRankExperts):
    """E changes of rank r to the weight (W, C) of a linear layer: scale · x · downᵀ · up.

    In the letters of the paper, down is A (E, r, C), up is Bᵀ (E, r, W), and alpha = scale · r.
    On qkv, W = 3C: 4·E·r·C parameters.
    """


class LoRAOfTasks(LoRA):
    """A change of the weight for each task, all of them summed; only that of `own` learns.

    The rows of `down` are given and not trained. Until they are, they are 0.

    Buffers: down (T, r, C); own (T,), True for the present task.

    Args:
        num_tasks: T.
        rank: r.
        width_in: C.
        width_out: W.
        scale: what the output is multiplied by.
    """

    learning_only = ("own",)
    own: Tensor

    def __init__(
        self, num_tasks: int, rank: int, width_in: int, width_out: int, scale: float
    ) -> None:
        super().__init__(num_tasks, rank, width_in, width_out, scale)
        del self.down
        self.register_buffer("down", torch.zeros(num_tasks, rank, width_in))
        self.register_buffer("own", torch.zeros(num_tasks, dtype=torch.bool))

    def together(self, tokens: Tensor, used: slice = slice(None)) -> Tensor:
        """As LowRankExperts.together; gradients reach the change of the present task alone."""
        up = self.up[used]
        if torch.is_grad_enabled():
            up = torch.where(self.own[used, None, None], up, up.detach())
        hidden = tokens @ self.down[used].flatten(0, 1).T
        return self.scale * (hidden @ up.flatten(0, 1))
