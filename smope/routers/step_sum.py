"""What a router collects during a training step, over parts of a batch and over processes.

Shapes: H heads, E experts of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smope.distributed import collectives


class StepSum(nn.Module):
    """A sum over the images of one training step. It is empty between steps, so it is not saved.

    Args:
        num_heads: H.
        num_experts: E.
        dtype: int64 for counts.
    """

    total: Tensor

    def __init__(
        self, num_heads: int, num_experts: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        total = torch.zeros(num_heads, num_experts, dtype=dtype)
        self.register_buffer("total", total, persistent=False)
        self.images = 0

    @torch.no_grad()
    def add(self, values: Tensor, images: int) -> None:
        """Add the sum over some images.

        Args:
            values: (H, E).
            images: how many.
        """
        self.total += values
        self.images += images

    @torch.no_grad()
    def take(self) -> tuple[Tensor, Tensor] | None:
        """The sum (H, E) over the images of all processes, and their number; empty afterwards.

        None if there were no images, as in a phase in which all experts are used.
        """
        if self.images == 0:
            return None
        packed = torch.cat([self.total.flatten(), self.total.new_full((1,), self.images)])
        packed = collectives.summed(packed)
        self.clear()
        return packed[:-1].view_as(self.total), packed[-1]

    def clear(self) -> None:
        """Drop what was collected, as by a step that only measured memory."""
        self.total.zero_()
        self.images = 0


def clear_step_sums(router: nn.Module) -> None:
    """Clear all sums of a router, before training begins."""
    for module in router.modules():
        if isinstance(module, StepSum):
            module.clear()
