"""Which experts the test images choose, and how clearly, from the choices that evaluation makes
anyway.

Shapes: T tasks, L prompted blocks, H heads, E experts of a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smope.distributed import collectives
from smope.methods._shared.routed_method import routings_of
from smope.methods.base import Method
from smope.metrics.expert_use import summarise_use
from smope.routers.base import score_range


class Choices(NamedTuple):
    """The choices of one batch, in this process. Where tokens choose for themselves, tokens count
    in place of images.

    Attributes:
        counts: (L, H, E), how many images chose an expert.
        chosen: experts of an image in a head.
        margins: (L,), the sum over images of their top-k margin, a mean over heads.
        images: how many.
    """

    counts: Tensor
    chosen: int
    margins: Tensor
    images: int

    def to(self, device: torch.device | str) -> Choices:
        """The same on a device."""
        return self._replace(counts=self.counts.to(device), margins=self.margins.to(device))


def count_choices(method: Method) -> Choices | None:
    """The choices of the batch that a method has just passed; None if it has no experts or uses all
    of them.
    """
    routings = routings_of(method)
    if not routings or routings[0].num_chosen == routings[0].scores.shape[-1]:
        return None
    counts = torch.stack([routing.chosen.sum(0) for routing in routings])
    scores = torch.stack([routing.scores for routing in routings])  # (L, B, H, E)
    chosen = routings[0].num_chosen
    return Choices(counts, chosen, top_k_margin(scores, chosen).mean(2).sum(1), scores.shape[1])


def top_k_margin(scores: Tensor, chosen: int) -> Tensor:
    """How clearly the best K experts stand apart: the K-th best score minus the next one, in units
    of the score range.

    Args:
        scores: (..., E).
        chosen: K, less than E.

    Returns:
        (...), in [0, 1]; 0 where all scores are equal.
    """
    best = scores.topk(chosen + 1, dim=-1).values
    width = score_range(scores)[..., 0].clamp(min=torch.finfo(scores.dtype).tiny)
    return (best[..., -2] - best[..., -1]) / width


class ExpertCounts:
    """Collects the choices of one evaluation, task by task."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start an evaluation."""
        self._tasks: list[Tensor] = []
        self._counts: Tensor | None = None
        self._margins: Tensor | None = None  # (L + 1,), with the number of images at the end
        self._chosen = 0

    def add(self, choices: Choices | None) -> None:
        """Add what count_choices() gave for a batch."""
        if choices is None:
            return
        self._chosen = choices.chosen
        if self._counts is None:
            self._counts = torch.zeros_like(choices.counts)
        self._counts += choices.counts
        margins = torch.cat([choices.margins, choices.margins.new_tensor([choices.images])])
        self._margins = margins if self._margins is None else self._margins + margins

    def end_task(self) -> None:
        """The images of one task are complete, in all processes."""
        if self._counts is not None:
            self._tasks.append(collectives.summed(self._counts))
            self._counts = None

    def summary(self) -> dict[str, Any] | None:
        """Numbers of the whole evaluation, see metrics.expert_use.summarise_use; None if no images
        chose among experts.
        """
        if not self._tasks or self._margins is None:
            return None
        *sums, images = collectives.summed(self._margins).tolist()
        margins = [total / images for total in sums]
        return summarise_use(torch.stack(self._tasks).cpu().numpy(), self._chosen, margins)
