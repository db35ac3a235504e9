"""SMoPE+: experts that learn from the first task, and a classifier in closed form for all tasks.

It adds three things that SMoPE lacks with a small budget: a classifier that compares the classes of
all tasks; features that do not change after the classifier has learned from them; and a start near
the backbone's own features (values of 0 add nothing, keys only take some of the attention away).

    first task     experts and a linear classifier learn as in SMoPE, from values of 0
    every task     the ridge classifier learns from one pass over the training images
                   (_shared/ridge_head.py)
    prediction     the ridge classifier, on the CLS feature and the mean patch token before the last
                   block

_shared/first_task_only.py has the idea. What the classifier remembers stays valid, so forgetting
comes only from more classes competing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import (
    AtLeast,
    BlockNumbers,
    NotNegative,
    OrderedPair,
    Positive,
    Range,
    Share,
)
from smope.experts.inject import Placement
from smope.methods._shared.first_task_only import FirstSession
from smope.methods._shared.ridge_head import PenaltyRule, RidgeHead
from smope.methods.base import Phase, Reference, TaskSpan
from smope.methods.smope import SMoPE
from smope.routers.base import Router


class SMoPEPlus(FirstSession, SMoPE):
    """SMoPE's experts and router, trained on the first task alone.

    The first task ends with the usage pass of SMoPE, which fixes the features. Arguments that SMoPE
    has as well are documented there.

    Args:
        epochs_factor: the first task takes so many times the trainer's epochs and dense epochs,
            since no other task trains.
        readout: "cls": the classifier sees the CLS feature. "cls_and_tokens": also the mean patch
            token before the last block, which costs nothing.
        width, exponents, penalty_rule: see ridge_head.RidgeHead.
    """

    reference = Reference(
        "smope; experts of Le et al. 2026 (arXiv 2509.24483), classifier of McDonnell et al. 2023 "
        "(arXiv 2307.02251)",
        "experts learn in the first task alone; later tasks cost one forward pass an image",
    )

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        router: Router,
        *,
        num_experts: Annotated[int, Range(1, 100_000)] = 25,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        router_loss_weight: Annotated[float, NotNegative()] = 1e-5,
        expert_init: Literal["uniform", "zero_values"] = "zero_values",
        importance_loss_weight: Annotated[float, NotNegative()] = 0.0,
        load_loss_weight: Annotated[float, NotNegative()] = 0.0,
        balance_loss_weight: Annotated[float, NotNegative()] = 0.0,
        router_z_loss_weight: Annotated[float, NotNegative()] = 0.0,
        similarity_loss_weight: Annotated[float, NotNegative()] = 0.0,
        expert_dropout: Annotated[float, Share(with_1=False)] = 0.0,
        placement: Placement = "prefix",
        rank: Annotated[int, AtLeast(1)] = 4,
        expert_rate_factor: Annotated[float, Positive()] = 5.0,
        epochs_factor: Annotated[int, AtLeast(1)] = 4,
        readout: Literal["cls", "cls_and_tokens"] = "cls_and_tokens",
        width: Annotated[int | None, AtLeast(1)] = 5000,
        exponents: Annotated[Sequence[int], OrderedPair(-30, 30)] = (-2, 8),
        penalty_rule: PenaltyRule = "gcv",
    ) -> None:
        super().__init__(
            backbone,
            num_classes,
            router,
            num_experts=num_experts,
            blocks=blocks,
            router_loss_weight=router_loss_weight,
            prototype_loss_weight=0.0,
            expert_init=expert_init,
            importance_loss_weight=importance_loss_weight,
            load_loss_weight=load_loss_weight,
            balance_loss_weight=balance_loss_weight,
            router_z_loss_weight=router_z_loss_weight,
            similarity_loss_weight=similarity_loss_weight,
            expert_dropout=expert_dropout,
            placement=placement,
            rank=rank,
            expert_rate_factor=expert_rate_factor,
            align=False,
        )
        self.epochs_factor = epochs_factor
        self.readout = readout
        features = backbone.embed_dim * (2 if readout == "cls_and_tokens" else 1)
        self.ridge = RidgeHead(features, num_classes, width, exponents, penalty_rule)

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [0, 1] -> features (B, C), or (B, 2C) with the mean patch
        token.
        """
        return self.backbone(images, with_tokens=self.readout == "cls_and_tokens")

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        phases = super().phases(task, epochs)
        return [replace(phase, epochs=self.epochs_factor * phase.epochs) for phase in phases]

    def begin_task(self, task: TaskSpan) -> None:
        """Do nothing: experts stay as the first task left them, so no prototypes are needed."""

    def own_passes(self, task: TaskSpan) -> int:
        """One for the ridge classifier, and in the first task the usage pass of the experts."""
        return 1 if task.index else 2

    def _training_logits(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(images))
