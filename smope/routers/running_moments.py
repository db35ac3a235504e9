"""What routers remember as running averages over training images.

Shapes: H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from smope.routers.base import Router
from smope.routers.step_sum import StepSum


class RunningMoments(Router):
    """Base of routers that rank experts by averages over training images.

    After each training step

        average <- momentum · average + (1 - momentum) · average over the step's images,

    and after the first step it is that of its images. Evaluation leaves averages as they are.

    Args:
        top_k: K, how many experts are chosen.
        momentum: Of the averages.
        next_task: "keep": they carry on through the next task. "reset": the first step of a task
            replaces them.
    """

    counts_choice = True
    learning_only = ("steps",)
    steps: Tensor

    def __init__(self, top_k: int, momentum: float, next_task: Literal["keep", "reset"]) -> None:
        super().__init__(top_k)
        self.momentum = momentum
        self.next_task = next_task
        self._names: tuple[str, ...] = ()

    def remember(self, **averages: Tensor) -> None:
        """Make the buffers, in `build`, and the number of steps that they have seen.

        Args:
            averages: What each of them is before the first step, (H, ...).
        """
        self._names = tuple(averages)
        for name, start in averages.items():
            self.register_buffer(name, start)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        rows = [start.flatten(1) for start in averages.values()]
        self.step_sum = StepSum(len(rows[0]), sum(row.shape[1] for row in rows))

    def collect(self, images: int, **sums: Tensor) -> None:
        """Add images of the step under way.

        Args:
            images: How many.
            sums: Over these images, in the shape of each average and in the order of `remember`.
        """
        self.step_sum.add(torch.cat([total.flatten(1) for total in sums.values()], 1), images)

    def begin_task(self) -> None:
        if self.next_task == "reset":
            self.steps.zero_()

    @torch.no_grad()
    def end_step(self) -> None:
        taken = self.step_sum.take()
        if taken is None:
            return
        total, images = taken
        averages = [getattr(self, name) for name in self._names]
        new = (total / images).split([average[0].numel() for average in averages], 1)
        weight = torch.where(self.steps > 0, 1 - self.momentum, 1.0)
        for average, rows in zip(averages, new, strict=True):
            average.lerp_(rows.view_as(average).to(average.dtype), weight.to(average.dtype))
        self.steps += 1
