"""Ridge regression on random features of the frozen backbone (RanPAC, McDonnell et al. 2023, arXiv
2307.02251).

ACIL (Zhuang et al. 2022, arXiv 2205.14922) is the same classifier: its recursion over the inverse
of gram + λ I gives the weights that are solved for here from the sums themselves. So it has no file
of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, OrderedPair
from smope.methods._shared.closed_form import OnePass, features_of
from smope.methods._shared.ridge_head import PenaltyRule, RidgeHead
from smope.methods.base import Batches, Recollection, Reference, TaskSpan


class Ridge(OnePass):
    """A ridge classifier on the CLS feature of the frozen backbone.

    method=ranpac has the first session of the paper. The features of a task are in memory while it
    is learned.

    Args:
        width, exponents, penalty_rule: see ridge_head.RidgeHead.
    """

    reference = Reference(
        "McDonnell et al. 2023, arXiv 2307.02251 (RanPAC)",
        "one pass over frozen features, nothing is trained; ranpac has the paper's first session",
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        width: Annotated[int | None, AtLeast(1)] = 2000,
        exponents: Annotated[Sequence[int], OrderedPair(-30, 30)] = (-8, 8),
        penalty_rule: PenaltyRule = "gcv",
    ) -> None:
        super().__init__(backbone, num_classes)
        self.classifier = RidgeHead(backbone.embed_dim, num_classes, width, exponents, penalty_rule)

    def recollect(self, count: int) -> Recollection | None:
        return self.classifier.recollect()

    def class_cosines(self, features: Tensor) -> Tensor | None:
        return self.classifier.class_cosines(features)

    @property
    def shares_sums(self) -> bool:
        return True

    def withdraw(self, label: int, features: Tensor | None) -> None:
        if features is not None:
            self.classifier.withdraw(label, features)

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        self.classifier.fit(features_of(self, batches, self.classifier.sums.penalty.device))
