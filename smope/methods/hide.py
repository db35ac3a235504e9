"""HiDe-Prompt: one prompt for each task; a second classifier infers the task of an image.

Wang et al., NeurIPS 2023, arXiv 2310.07234, after their public code. It has three parts:

    within-task prediction    a task's prompt starts as the one before, is mixed with the mean of
                              all earlier prompts, and is trained with cross-entropy and a
                              contrastive term on class means;
    task identity inference   a small classifier on features without prompts, trained first
                              (_shared/task_identity.py);
    task-adaptive prediction  both classifiers are aligned on class statistics
                              (training/alignment.py).

Differences from the public code: class statistics are diagonal Gaussians (there: 10 centroids, or
full covariances). Alignment is that of this trainer (there: SGD). Schedules are those of this
trainer (there the rate of the identity classifier is constant). Gradients are not clipped. Both
alignments use the same numbers of samples and epochs (there the identity classifier has fewer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Range, Share
from smope.distributed import collectives
from smope.errors import UserError
from smope.losses.classification import task_cross_entropy
from smope.methods._shared.class_statistics import ClassStatistics
from smope.methods._shared.prefix_method import Choice, PrefixMethod, check_tasks
from smope.methods._shared.task_identity import TaskIdentity
from smope.methods.base import (
    AlignableClassifier,
    BatchDependence,
    Batches,
    Phase,
    Reference,
    TaskSpan,
)
from smope.prompts.pool import AuthorsBug, new_prompts, pick, vote
from smope.prompts.prefix import Prefix, prefixes

TEMPERATURE = 0.8  # of the contrastive term, as in the public code


class HiDePrompt(PrefixMethod):
    """HiDe-Prompt.

    In training an image gets the prompt of its task, in evaluation that of the inferred task.

    Args:
        length: keys of a prompt in a block, and as many values.
        blocks: where the prompts join; None: the first five.
        identity_epochs: of each task, to train the identity classifier first; None: trainer.epochs.
            A step costs a forward pass and no backward pass through the backbone.
        prompt_momentum: share of the mean of earlier prompts in a task's prompt.
        contrastive_weight: of the contrastive term, which needs class means even without alignment.
        prompt_rate_factor: learning rate of the prompts, as a multiple of the classifier's.
        identity_rate_factor: the same for the identity classifier.
        align: align the classifier. (The identity classifier always is: trained task by task, it
            could not tell tasks apart.)
        centroids: Gaussians of each class, for both classifiers.
        authors_bug: faults of published code, for comparison only: IMAGES LEAK INTO EACH OTHER
            (prompts/pool.py).
    """

    reference = Reference(
        "Wang et al. 2023, arXiv 2310.07234, and the authors' code",
        "parameters include those that tell the task (a layer of 2.4 M and a classifier); one "
        "forward pass an image in training, after an identity phase of one without gradients, and "
        "two in evaluation",
        published_parameters=4.21,
        published_gflops=(33.72, 67.45),
    )

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        length: Annotated[int, AtLeast(1)] = 20,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        identity_epochs: Annotated[int | None, AtLeast(0, example="20")] = None,
        prompt_momentum: Annotated[float, Share(with_1=False)] = 0.01,
        contrastive_weight: Annotated[float, NotNegative()] = 0.1,
        prompt_rate_factor: Annotated[float, Positive()] = 10.0,
        identity_rate_factor: Annotated[float, Positive()] = 0.2,
        align: bool = True,
        centroids: Annotated[int, Range(1, 1000)] = 1,
        authors_bug: AuthorsBug = "none",
    ) -> None:
        blocks = [0, 1, 2, 3, 4] if blocks is None else blocks
        super().__init__(
            backbone,
            num_classes,
            blocks,
            align=align,
            centroids=centroids,
            prompt_rate_factor=prompt_rate_factor,
        )
        if contrastive_weight > 0:  # even without alignment
            self.statistics = ClassStatistics(num_classes, centroids, backbone.embed_dim)
        self.identity_epochs = identity_epochs
        self.prompt_momentum = prompt_momentum
        self.contrastive_weight = contrastive_weight
        self.identity_rate_factor = identity_rate_factor
        self.authors_bug: AuthorsBug = authors_bug
        self.prompts = new_prompts(len(blocks), total_tasks, length, self.width)
        self.identity = TaskIdentity(backbone.embed_dim, num_classes, centroids, self.query)
        self._learning_identity = False

    @property
    def queried(self) -> bool:
        """Only in evaluation: in training the task is known."""
        return not self.training

    def check_stream(self, tasks: Sequence[TaskSpan]) -> None:
        check_tasks(self, tasks, self.prompts.shape[2])
        again = next((task for task in tasks if task.repeats), None)
        if again is not None:
            raise UserError(
                f"method: {type(self).__name__} tells an image's task from its class, and classes "
                f"come again in task {again.index + 1} of this stream; choose a method that does "
                f"not, such as coda or smope"
            )

    def needs_whole_batch(self) -> BatchDependence | None:
        """The contrastive term compares an image's feature with all others of the batch."""
        if self.contrastive_weight > 0:
            setting = f"method.contrastive_weight={self.contrastive_weight:g}"
            return BatchDependence(setting, "method.contrastive_weight=0")
        return super().needs_whole_batch()

    @torch.no_grad()
    def begin_task(self, task: TaskSpan) -> None:
        super().begin_task(task)
        self.identity.begin_task(task)
        if task.index > 0:
            self.prompts[:, :, task.index] = self.prompts[:, :, task.index - 1]

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        identity_epochs = epochs if self.identity_epochs is None else self.identity_epochs
        prompts = Phase("prompts", epochs)
        return [Phase("identity", identity_epochs), prompts] if identity_epochs else [prompts]

    def begin_phase(self, phase: Phase) -> None:
        self._learning_identity = phase.name == "identity"

    def reads_frozen_features(self, phase: Phase) -> bool:
        return phase.name == "identity"

    def choose(self, query: Tensor) -> Choice:
        if self.training:
            return self._of_task(query.shape[0], self._momentum_mix())
        ids = self.identity(query).unsqueeze(1)
        if "vote" in self.authors_bug:
            ids = vote(ids, self.prompts.shape[2])
        return Choice(self._prefixes(pick(self.prompts, ids, self.authors_bug)))

    def _of_task(self, images: int, prompt: Tensor) -> Choice:
        """One prompt (L, 2, P, W) for each of so many images."""
        ids = torch.zeros(images, 1, dtype=torch.int64, device=prompt.device)
        return Choice(self._prefixes(pick(prompt.unsqueeze(2), ids, self.authors_bug)))

    def _prefixes(self, rows: Tensor) -> list[Prefix]:
        """rows (L, 2, B, P, W) -> a prefix for each block."""
        return prefixes(rows)

    def _momentum_mix(self) -> Tensor:
        """The task's prompt mixed with the mean of all earlier prompts, (L, 2, P, W)."""
        index = int(self.task)
        prompt = self.prompts[:, :, index]
        if index == 0:
            return prompt
        earlier = self.prompts[:, :, :index].detach().mean(2)
        return (1 - self.prompt_momentum) * prompt + self.prompt_momentum * earlier

    def task_features(self, images: Tensor, task: TaskSpan) -> Tensor:
        """Features with the task's own prompt, as in training."""
        return self.prompted(images, self._of_task(images.shape[0], self.prompts[:, :, task.index]))

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        if self._learning_identity:
            logits = self.identity.classify(self.query(images))
            return {"cross_entropy": task_cross_entropy(logits, labels, task.classes)}
        features = self.features(images)
        losses = {
            "cross_entropy": task_cross_entropy(self.classify(features), labels, task.classes)
        }
        if self.contrastive_weight > 0:
            means = self.statistics.mean[self.statistics.known]
            losses["contrastive"] = self.contrastive_weight * apart(
                collectives.whole_batch(features), means
            )
        return losses

    def own_passes(self, task: TaskSpan) -> int:
        return 0

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        """Keep the mixed prompt that was trained."""
        self.prompts[:, :, task.index] = self._momentum_mix()

    def aligned(self) -> Sequence[AlignableClassifier]:
        return [self.identity, *super().aligned()]

    def recorded(self) -> Sequence[AlignableClassifier]:
        """The contrastive term needs class means whether or not the classifier is aligned."""
        needs_means = self.align or self.contrastive_weight > 0
        return [self.identity, self] if needs_means else [self.identity]

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        prompts, *others = super().parameter_groups(learning_rate)
        identity = list(self.identity.parameters())
        ids = {id(parameter) for parameter in identity}
        prompts["params"] = [
            parameter for parameter in prompts["params"] if id(parameter) not in ids
        ]
        return [
            prompts,
            {"params": identity, "lr": self.identity_rate_factor * learning_rate},
            *others,
        ]


def apart(features: Tensor, means: Tensor) -> Tensor:
    """The contrastive term: cross-entropy of telling each point from all others by inner product.

    Args:
        features: (B, C).
        means: class means (n, C).

    Returns:
        A scalar; points are features and means together.
    """
    points = torch.cat([means, features.to(means.dtype)])
    with torch.autocast(points.device.type, enabled=False):  # products of whole features are large
        return F.cross_entropy(
            points @ points.T / TEMPERATURE, torch.arange(len(points), device=points.device)
        )
