"""Adapting to the first task alone: what learns does so there and stays, and a ridge classifier
learns all tasks.

The first session of RanPAC and ADAM (McDonnell et al. 2023, arXiv 2307.02251; Zhou et al. 2023,
arXiv 2303.07338).
"""

from __future__ import annotations

import torch
from torch import Tensor

from smope.methods._shared.closed_form import features_of
from smope.methods._shared.ridge_head import RidgeHead
from smope.methods.base import Batches, Method, Phase, TaskSpan


class FirstSession(Method):
    """To be named before the base that says what learns in the first task; the linear classifier
    helps it and predicts nothing. Memory: RidgeHead's, and the features of a task's images while it
    is learned.
    """

    learning_only = ("classifier",)
    ridge: RidgeHead

    def classify(self, features: Tensor) -> Tensor:
        return self.ridge(features)

    def phases(self, task: TaskSpan, epochs: int, dense_epochs: int) -> list[Phase]:
        return super().phases(task, epochs, dense_epochs) if task.index == 0 else []

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        if task.index == 0:
            super().end_task(task, batches)
        self.ridge.fit(features_of(self, batches, self.ridge.sums.gram.device))
