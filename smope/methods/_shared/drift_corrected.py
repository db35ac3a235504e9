"""For methods that train one set of modules in every task, and carry class Gaussians along."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.experts.shared import SharedModules
from smope.methods._shared.class_gaussians import ClassGaussians, in_float64
from smope.methods._shared.closed_form import features_of, joined
from smope.methods._shared.earlier_self import EarlierSelf
from smope.methods.base import AlignableClassifier, Batches, Method, TaskSpan


class DriftCorrected(Method):
    """Trains modules beside frozen layers in every task, and keeps a Gaussian of each class.

    After a task, one pass over its images (through the evaluation transform) gives their features
    before and after it. A subclass moves the Gaussians of old classes by these in `carry`; then
    those of the task are added. The classifier is aligned on samples of all of them.

    Args:
        wrappers: the modules, already in the backbone.
        rate_factor: learning rate of the modules, as a multiple of the classifier's.
        shrink: see ClassGaussians.
    """

    learning_only = ("earlier",)
    statistics: ClassGaussians

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        wrappers: Sequence[SharedModules],
        *,
        align: bool,
        rate_factor: float,
        shrink: float,
    ) -> None:
        super().__init__(backbone, num_classes, align=align)
        self.rate_factor = rate_factor
        self.statistics = ClassGaussians(num_classes, backbone.embed_dim, shrink)
        # Registered beside the backbone, whose part of the state is left out.
        self.shared = nn.ModuleList(wrapper.modules_beside for wrapper in wrappers)
        self.earlier = EarlierSelf(self.shared.parameters)

    def features(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def earlier_features(self, images: Tensor) -> Tensor:
        """Features (B, C) by the network as it was before the task, without gradient.

        Within a training step they come first: no weights may change between a forward pass with
        gradient and its backward pass.
        """
        with self.earlier.used():
            return self.backbone(images)

    def begin_task(self, task: TaskSpan) -> None:
        self.earlier.take()

    def carry(self, before: Tensor, after: Tensor, task: TaskSpan) -> None:
        """Move the Gaussians of earlier classes.

        Args:
            before: features of the task's images before it was learned, (n, C) in float64.
            after: the same after it.
            task: the task.
        """
        raise TypeError(f"{type(self).__name__} does not define carry(before, after, task)")

    def own_passes(self, task: TaskSpan) -> int:
        """One after each task, and from the second on one by the network of before."""
        return 2 if task.index else 1

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        device = in_float64(self.statistics.mean[:0]).device
        later = task.index > 0
        both = partial(self.earlier.before_and_after, self.features) if later else None
        features, labels = joined(features_of(self, batches, device, both))
        before, after = features.chunk(2, -1) if later else (features, features)
        if later:
            self.carry(before, after, task)
        for label in labels.unique().tolist():
            self.statistics.record(label, after[labels == label])
            self.statistics.task[label] = task.index

    def recorded(self) -> Sequence[AlignableClassifier]:
        """None: end_task has recorded them."""
        return []

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        modules = {"params": list(self.shared.parameters()), "lr": self.rate_factor * learning_rate}
        return [modules, *super().parameter_groups(learning_rate)]

    def prompt_parameters(self) -> Iterable[nn.Parameter]:
        return self.shared.parameters()
