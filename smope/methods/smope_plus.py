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

With later_epochs_factor the experts learn on in later tasks, which changes the features of old
images. So features of each class are stored, and moved as those of the new task's images moved
while it was learned (_shared/drift.moved). The ridge classifier is fitted anew to all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
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
from smope.methods._shared.closed_form import features_of, joined
from smope.methods._shared.earlier_self import EarlierSelf
from smope.methods._shared.first_task_only import FirstSession
from smope.methods._shared.ridge_head import PenaltyRule, RidgeHead
from smope.methods._shared.stored_features import StoredFeatures
from smope.methods.base import Batches, Phase, Reference, TaskSpan
from smope.methods.smope import SMoPE
from smope.routers.base import Router


class SMoPEPlus(FirstSession, SMoPE):
    """SMoPE's experts and router, trained on the first task alone, or also in later ones.

    A task that trains ends with the usage pass of SMoPE. Arguments that SMoPE has as well are
    documented there.

    Args:
        epochs_factor: the first task takes so many times the trainer's epochs and dense epochs,
            since no other task trains.
        readout: "cls": the classifier sees the CLS feature. "cls_and_tokens": also the mean patch
            token before the last block, which costs nothing.
        width, exponents, penalty_rule: see ridge_head.RidgeHead.
        later_epochs_factor: each later task trains for so many times the trainer's epochs; 0: the
            experts rest.
        later_rate_factor: learning rate of the experts in later tasks, as a multiple of that in the
            first.
        stored_features: of each class, if experts learn on: num_classes · stored_features · C
            numbers in float32, with C twice the backbone's width for "cls_and_tokens".
        drift_penalty: of the map by which stored features move, see drift.moved.
    """

    reference = Reference(
        "smope; experts of Le et al. 2026 (arXiv 2509.24483), classifier of McDonnell et al. 2023 "
        "(arXiv 2307.02251)",
        "experts learn in the first task alone; later tasks cost one forward pass an image",
    )
    learning_only = ("stored", "earlier")

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
        later_epochs_factor: Annotated[int, AtLeast(0)] = 0,
        later_rate_factor: Annotated[float, Positive()] = 0.3,
        stored_features: Annotated[int, AtLeast(1)] = 100,
        drift_penalty: Annotated[float, NotNegative()] = 1.0,
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
        self.later_epochs_factor = later_epochs_factor
        self.later_rate_factor = later_rate_factor
        self.drift_penalty = drift_penalty
        self.stored = self.earlier = None
        if self.learns_on:
            self.stored = StoredFeatures(num_classes, stored_features, features)
            self.earlier = EarlierSelf(self._experts_and_counts)
        self._later = False  # whether the phase under way is of a later task

    @property
    def learns_on(self) -> bool:
        """Whether experts learn in tasks after the first."""
        return self.later_epochs_factor > 0

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [0, 1] -> features (B, C), or (B, 2C) with the mean patch
        token.
        """
        return self.backbone(images, with_tokens=self.readout == "cls_and_tokens")

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        if task.index and self.learns_on:
            return [Phase("continued", self.later_epochs_factor * epochs)]
        phases = super().phases(task, epochs)
        return [replace(phase, epochs=self.epochs_factor * phase.epochs) for phase in phases]

    def begin_phase(self, phase: Phase) -> None:
        super().begin_phase(phase)
        self._later = phase.name == "continued"

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        experts, classifier = super().parameter_groups(learning_rate)
        if self._later:
            experts["lr"] *= self.later_rate_factor
        return [experts, classifier]

    def begin_task(self, task: TaskSpan) -> None:
        """Experts need no prototypes, since their keys are not compared with earlier ones."""
        if self.earlier is not None:
            self.earlier.take()

    def features_are_final(self, task: TaskSpan) -> bool:
        return not self.learns_on

    def trains(self, task: TaskSpan) -> bool:
        return self.learns_on or super().trains(task)

    def own_passes(self, task: TaskSpan) -> int:
        """One for the ridge classifier; where experts learn, also their usage pass; where they
        learn on, also one as they were before.
        """
        if task.index and self.learns_on:
            return 3
        return 1 if task.index else 2

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        if self.stored is None or self.earlier is None:
            super().end_task(task, batches)
            return
        SMoPE.end_task(self, task, batches)
        later = bool(self.stored.images.any())
        both = partial(self.earlier.before_and_after, self.features) if later else None
        features, labels = joined(features_of(self, batches, self.stored.images.device, both))
        if later:
            before, features = features.chunk(2, -1)
            self.stored.carry(before, features, self.drift_penalty)
        self.stored.add(features, labels)
        self.ridge.refit([self.stored.all()])

    def _experts_and_counts(self) -> Iterable[Tensor]:
        """All that features depend on, apart from the backbone."""
        parts = (self.banks, self.routers)
        return itertools.chain(*(itertools.chain(p.parameters(), p.buffers()) for p in parts))

    @property
    def shares_sums(self) -> bool:
        """Where experts learn on, what is remembered of a class is removed without its images."""
        return not self.learns_on

    def withdraw(self, label: int, features: Tensor | None) -> None:
        if self.stored is None:
            super().withdraw(label, features)
            return
        self.stored.remove(label)
        self.ridge.refit([self.stored.all()])

    def _training_logits(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(images))
