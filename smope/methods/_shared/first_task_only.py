"""For methods that adapt the network to the first task alone, and learn all tasks in closed form.

This is the first session of RanPAC and ADAM (McDonnell et al. 2023, arXiv 2307.02251; Zhou et al.
2023, arXiv 2303.07338).
"""

from __future__ import annotations

import torch
from torch import Tensor

from smope.methods._shared.closed_form import features_of
from smope.methods._shared.ridge_head import RidgeHead
from smope.methods.base import Batches, Method, Phase, Recollection, TaskSpan


class FirstSession(Method):
    """Mixin: the other base of a class says what is trained in the first task, and comes second.

    The ridge classifier learns after every task and predicts. The linear classifier only helps to
    train in the first task. Memory is that of RidgeHead, and of the features of a task while it is
    learned.
    """

    learning_only = ("classifier",)
    ridge: RidgeHead

    def classify(self, features: Tensor) -> Tensor:
        return self.ridge(features)

    def features_are_final(self, task: TaskSpan) -> bool:
        """The first task alone changes what features depend on, so they are final at its end."""
        return True

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        return super().phases(task, epochs) if task.index == 0 else []

    def recollect(self, count: int) -> Recollection | None:
        return self.ridge.recollect()

    def class_cosines(self, features: Tensor) -> Tensor | None:
        return self.ridge.class_cosines(features)

    @property
    def shares_sums(self) -> bool:
        return True

    def withdraw(self, label: int, features: Tensor | None) -> None:
        if features is not None:
            self.ridge.withdraw(label, features)

    def trains(self, task: TaskSpan) -> bool:
        return task.index == 0

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        if task.index == 0:
            super().end_task(task, batches)
        self.ridge.fit(features_of(self, batches, self.ridge.sums.penalty.device))
