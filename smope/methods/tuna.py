"""TUNA: an adapter for each task, a universal one merged from them, and a confident choice.

Wang, Zhou and Ye, ICCV 2025, arXiv 2508.08165, after the authors' code.

    training        CosFace among the classes of the task, with an adapter of the task's own, whose
                    up-projections are kept apart from earlier ones
    after a task    the universal adapter is merged anew; the classifier is retrained on samples of
                    all class Gaussians, each described with the adapter of its task
    test            T + 1 passes after T tasks: each task's adapter classifies an image, the one of
                    lowest entropy is chosen, and its probabilities are averaged with those of the
                    universal adapter

Where this differs from the authors' code: adapters have no biases and read what the MLP reads; they
have no weight decay; optimizer and schedules are this trainer's; logits are the logarithms of mean
probabilities, whose sums that code ranks. In the first task both adapters are the same, and it
takes one pass, as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Share
from smope.losses.classification import task_cosface
from smope.methods._shared.aligned_part import AlignedPart
from smope.methods._shared.class_gaussians import ClassGaussians
from smope.methods._shared.task_adapters import TaskAdapters
from smope.methods.base import AlignableClassifier, Batches, Reference, TaskSpan

NOT_SEEN = -1e4  # logit of a class that no task had: its probability is 0, its logarithm finite


class TUNA(TaskAdapters):
    """Task adapters, chosen by entropy, and a universal one.

    Class Gaussians need num_classes · C² numbers; see class_gaussians.py.

    Args:
        rank: of the adapters, their bottleneck.
        blocks: where adapters are; None: in every block.
        adapter_scale: what they are multiplied by.
        scale: of cosines, the largest logit.
        margin: by which CosFace lowers the cosine of the true class.
        orthogonality: weight of `likeness`, times e^-(t + 1) in task t, counted from 0; the first
            task has none.
        shrink: older classes are drawn closer to the origin; see ClassGaussians.
        adapter_rate_factor: learning rate of the adapters, as a multiple of the classifier's.
        align: retrain the classifier on samples of all classes after each task from the second on.
    """

    reference = Reference(
        "Wang et al. 2025, arXiv 2508.08165, and the authors' code",
        "one pass an image in training, T + 1 at test after T tasks (here 11)",
    )
    front = 1  # the universal adapter
    statistics: ClassGaussians
    seen: Tensor

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        rank: Annotated[int, AtLeast(1)] = 16,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        adapter_scale: Annotated[float, Positive()] = 0.1,
        scale: Annotated[float, Positive()] = 20.0,
        margin: Annotated[float, NotNegative()] = 0.0,
        orthogonality: Annotated[float, NotNegative()] = 1e-3,
        shrink: Annotated[float, Share(with_1=False)] = 0.0,
        adapter_rate_factor: Annotated[float, Positive()] = 1.0,
        align: bool = True,
    ) -> None:
        super().__init__(
            backbone,
            num_classes,
            total_tasks,
            rank=rank,
            blocks=blocks,
            adapter_scale=adapter_scale,
            scale=scale,
            rate_factor=adapter_rate_factor,
            align=align,
        )
        self.margin = margin
        self.orthogonality = orthogonality
        self.statistics = ClassGaussians(num_classes, backbone.embed_dim, shrink, recorded=align)
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self._alignable = OfTheTask(self)

    def passes(self) -> Sequence[int]:
        """The adapters of the tasks, and the universal one, number 0, last."""
        of_tasks = super().passes()
        return of_tasks if len(of_tasks) == 1 else [*of_tasks, 0]

    def classify(self, features: Tensor) -> Tensor:
        """Features of all passes (B, n·C) -> logarithms of probabilities (B, K)."""
        logits = self.classifier(self.by_pass(features)).masked_fill(~self.seen, NOT_SEEN)
        each = logits.log_softmax(-1)
        return each[:, 0] if each.shape[1] == 1 else with_most_confident(each)

    def begin_task(self, task: TaskSpan) -> None:
        super().begin_task(task)
        self.seen[list(task.classes)] = True

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        logits = self.classifier(self.features_of_task(images, task))
        cosface = task_cosface(logits, labels, task.classes, self.classifier.scale, self.margin)
        if not (task.index and self.orthogonality):
            return {"cosface": cosface}
        own = slice(self.front, self.front + task.index + 1)
        ups = [wrapper.modules_beside.up[own] for wrapper in self._wrappers]
        weight = self.orthogonality * math.exp(-(task.index + 1))
        return {"cosface": cosface, "orthogonality": weight * likeness(torch.stack(ups))}

    def task_features(self, images: Tensor, task: TaskSpan) -> Tensor:
        return self.features_of_task(images, task)

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        for weights in self.adapters.parameters():
            weights[0] = merged(weights[self.front : self.front + task.index + 1])
        self.statistics.task[list(task.classes)] = task.index
        # The Gaussian of a class that comes again is of the new adapter's features alone.
        self.statistics.count[list(task.classes)] = 0

    def own_passes(self, task: TaskSpan) -> int:
        return 0

    def aligned(self) -> Sequence[AlignableClassifier]:
        return [self._alignable] if self.align else []

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        """Of the feature with the adapter of a class's task, and its mean."""
        labels = self.statistics.known.any(-1).nonzero()[:, 0]
        if not len(labels):
            return None
        means = F.normalize(self.statistics.mean[labels, 0], dim=-1)
        cosines = F.normalize(self.by_pass(features).to(means), dim=-1) @ means.T  # (B, n, classes)
        own = self.statistics.task[labels]
        nearest = means.new_full((len(features), self.num_classes), -torch.inf)
        nearest[:, labels] = cosines[:, own, torch.arange(len(labels), device=own.device)]
        return nearest


class OfTheTask(AlignedPart):
    """The classifier on features with the adapter of a task, as class Gaussians describe them."""

    def classify(self, features: Tensor) -> Tensor:
        """features (B, C) -> logits (B, K)."""
        return self.method.classifier(features)


def with_most_confident(each: Tensor) -> Tensor:
    """The mean of the most confident adapter's probabilities and the universal one's.

    Args:
        each: logarithms of probabilities (B, n, K), those of the universal adapter last.

    Returns:
        Logarithms of probabilities (B, K).
    """
    of_tasks, universal = each[:, :-1], each[:, -1]
    entropy = -(of_tasks.exp() * of_tasks).sum(-1)
    best = entropy.argmin(-1)[:, None, None].expand(-1, 1, each.shape[-1])
    mean = (of_tasks.gather(1, best).squeeze(1).exp() + universal.exp()) / 2
    return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()


def merged(weights: Tensor) -> Tensor:
    """The universal adapter: of each weight the value of largest magnitude among those with the
    sign of the sum over tasks.

    Args:
        weights: of the tasks' adapters, (t, ...).

    Returns:
        (...), 0 where the sum is.
    """
    sign = weights.sum(0).sign()
    return sign * (weights * sign).clamp(min=0).amax(0)


def likeness(ups: Tensor) -> Tensor:
    """How alike the up-projections of a task and those of earlier ones are.

    For U_i (C, r) of task i with rows of length 1, it is the sum over earlier tasks of the mean
    over blocks of |mean over all entries of U_t · U_iᵀ|.

    Args:
        ups: (blocks, t, r, C), the present task last; earlier ones get no gradient.

    Returns:
        A scalar.
    """
    # the mean over the entries of a product is the product of mean rows
    rows = F.normalize(ups, dim=-2).mean(-1)  # (blocks, t, r)
    return (rows[:, :-1].detach() * rows[:, -1:]).sum(-1).abs().mean(0).sum()
