"""The experts of one block, as stacked tensors, and what is remembered about them.

Shapes: H heads, E experts a head, K chosen experts, D head width, C = H·D.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smope.distributed import collectives
from smope.experts.low_rank import LowRankExperts, fresh_down
from smope.routers.base import ExpertState


class ExpertBank(nn.Module):
    """The keys of E experts for each head, and what is remembered of their use.

    Subclasses say what an expert does once it is chosen.

    Parameters  keys: (H, E, D), initialised uniform(0, 1).
    Buffers     counts (H, E) int64, frequent (H, E) bool: see ExpertState;
                old_keys (H, E, D): the keys as the previous task left them.
    """

    learning_only = ("old_keys",)  # what the state says, a router may read at any time
    counts: Tensor
    frequent: Tensor
    available: Tensor | None = None  # in this training step, see dropout.py
    old_keys: Tensor

    def __init__(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        super().__init__()
        shape = (num_heads, num_experts, head_dim)
        self.keys = nn.Parameter(torch.rand(shape))
        self.register_buffer("counts", torch.zeros(shape[:2], dtype=torch.int64))
        self.register_buffer("frequent", torch.zeros(shape[:2], dtype=torch.bool))
        self.register_buffer("old_keys", torch.zeros(shape))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys (H, E, D) for the router, and what each expert adds as one row (H, E, W)."""
        raise TypeError(f"{type(self).__name__} does not define forward() -> keys, values")

    @property
    def state(self) -> ExpertState:
        return ExpertState(self.counts, self.frequent, self.available if self.training else None)

    @torch.no_grad()
    def count(self, uses: Tensor) -> None:
        """Add the uses (H, E) int64 of this process's share of a batch, and of all others."""
        self.counts += collectives.summed(uses)

    @torch.no_grad()
    def flag_frequent(self, *, cumulative: bool) -> None:
        """Flag the experts that are used at least as much as the average expert of their head.

        cumulative (the authors' code): the average is over the experts used at all, and a flag
        stays set. Otherwise (the paper): the average is over all E, and flags are decided anew.
        """
        used = self.counts > 0
        averaged_over = used.sum(-1, keepdim=True) if cumulative else self.counts.shape[-1]
        # counts >= sum / n, in whole numbers
        above = used & (self.counts * averaged_over >= self.counts.sum(-1, keepdim=True))
        self.frequent.copy_(self.frequent | above if cumulative else above)

    @torch.no_grad()
    def reinitialise_unused(self) -> None:
        """Draw the experts again that no task has used; the others stay as they are, bit by bit."""
        unused = self.counts == 0
        for rows, fresh in self._draws():
            mask = unused.view(*unused.shape, *(1 for _ in rows.shape[2:]))
            rows.copy_(torch.where(mask, fresh(rows), rows))

    def _draws(self) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Each parameter (H, E, ...), and what draws it at the start."""
        return [(self.keys, torch.rand_like)]

    @torch.no_grad()
    def snapshot(self) -> None:
        """Remember the present keys as the old ones."""
        self.old_keys.copy_(self()[0])


class PrefixBank(ExpertBank):
    """Experts that attention reads: one key row and one value row each, living in head space (after
    qkv).

    Parameters  keys, values: (H, E, D), initialised uniform(0, 1), or values as zeros with
                `zero_values`.
    Buffers     those of ExpertBank, and old_values (H, E, D).
    """

    learning_only = ("old_values",)
    old_values: Tensor

    def __init__(
        self, num_heads: int, num_experts: int, head_dim: int, zero_values: bool = False
    ) -> None:
        super().__init__(num_heads, num_experts, head_dim)
        self._fresh_values = torch.zeros_like if zero_values else torch.rand_like
        self.values = nn.Parameter(self._fresh_values(self.keys))
        self.register_buffer("old_values", torch.zeros_like(self.keys))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values as attention uses them, both (H, E, D)."""
        return self.keys, self.values

    def _draws(self) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        return [*super()._draws(), (self.values, self._fresh_values)]

    @torch.no_grad()
    def snapshot(self) -> None:
        """Remember the present keys and values as the old ones."""
        super().snapshot()
        self.old_values.copy_(self()[1])


class InputSpaceBank(PrefixBank):
    """Experts in the block's input space, sent through the frozen W_K and W_V: the paper's formula
    P·W_K, P·W_V.

    The same number of parameters: expert e is one C-wide key row and one C-wide value row, shared
    by the heads, each of which sees it through its own slice of the projection. (The authors'
    code keeps experts in head space.)
    """

    def __init__(
        self,
        num_heads: int,
        num_experts: int,
        head_dim: int,
        qkv: nn.Linear,
        zero_values: bool = False,
    ) -> None:
        super().__init__(num_heads, num_experts, head_dim, zero_values)
        # Held in a tuple so that the frozen projection is not registered (and saved) a second time.
        self._qkv = (qkv,)

    def forward(self) -> tuple[Tensor, Tensor]:
        _, key_weight, value_weight = self._qkv[0].weight.detach().chunk(3)
        return self._project(self.keys, key_weight), self._project(self.values, value_weight)

    @staticmethod
    def _project(rows: Tensor, weight: Tensor) -> Tensor:
        heads, experts, width = rows.shape
        prompts = rows.transpose(0, 1).reshape(experts, heads * width)
        with torch.autocast(rows.device.type, enabled=False):  # the keys decide on routing
            return (prompts @ weight.T).view(experts, heads, width).transpose(0, 1)


class LowRankBank(ExpertBank):
    """Keys of experts of low rank, with one head as wide as what the experts read: H = 1, D = C."""

    def __init__(self, experts: LowRankExperts) -> None:
        num_experts, _, width = experts.down.shape
        super().__init__(1, num_experts, width)
        self.experts = experts

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys (1, E, C), and the projections up as rows (1, E, r·W)."""
        return self.keys, self.experts.up.flatten(1).unsqueeze(0)

    def _draws(self) -> list[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        down, up = self.experts.down.unsqueeze(0), self.experts.up.unsqueeze(0)
        return [*super()._draws(), (down, fresh_down), (up, torch.zeros_like)]
