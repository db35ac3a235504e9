"""HiDe-Prompt: a prompt for each task, the task told from features without prompts, classifiers
aligned on statistics.

Wang et al., NeurIPS 2023, arXiv 2310.07234, after their public program:
    within-task prediction    a task's prompt starts as the one before it, is mixed with the mean of
                              the earlier ones,
                              and is trained with cross-entropy and a contrastive term towards
                              remembered class means;
    task identity inference   a small classifier on features without prompts
                              (_shared/task_identity.py), trained first;
    task-adaptive prediction  both classifiers are aligned on class statistics:
                              training/alignment.py.

Not as in the program: class statistics are diagonal Gaussians (there: 10 centroids, or full
covariances), alignment is that of this trainer (there: SGD), and so are schedules (there the
identity classifier's rate is constant), gradients are not clipped. One number of samples and of
epochs serves both alignments (there the identity classifier has fewer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.distributed import collectives
from smope.errors import UserError
from smope.losses.classification import task_cross_entropy
from smope.methods._shared.class_statistics import ClassStatistics
from smope.methods._shared.prefix_method import Choice, PrefixMethod, check_tasks
from smope.methods._shared.task_identity import TaskIdentity
from smope.methods.base import Aligned, Batches, Card, Coupling, Phase, TaskSpan
from smope.prompts.pool import AuthorsBug, new_prompts, pick, vote
from smope.prompts.prefix import Prefix, prefixes

TEMPERATURE = 0.8  # of the contrastive term, as in the program


class HiDePrompt(PrefixMethod):
    """In training an image gets its task's prompt, in evaluation that of the task inferred for it.

    length:               keys of a prompt in a block, and as many values.
    identity_epochs:      of each task, to train the task's classes into the identity classifier
                          first; null: as many as
                          trainer.epochs. They cost a forward pass a step and no backward pass
                          through the backbone.
    prompt_momentum:      share of the mean of earlier prompts in a task's.
    contrastive_weight:   of the contrastive term.
    prompt_rate_factor, identity_rate_factor: learning rates over the classifier's.
    align, centroids:     retrain the classifier on class statistics; Gaussians a class for both
                          classifiers. (The
                          identity classifier is always aligned: trained task by task it would not
                          tell tasks apart.) Without alignment the contrastive term remembers class
                          means all the same.
    authors_bug:          faults of published programs, for comparison only: IMAGES LEAK INTO EACH
                          OTHER (pool.py).
    """

    card = Card(
        "Wang et al. 2023, arXiv 2310.07234, and its program",
        "parameters include those that tell the task (a layer of 2.4 M and a classifier); one "
        "forward pass an image in "
        "training, after an identity phase of one without gradients, and two in evaluation",
        published_parameters=4.21,
        published_gflops=(33.72, 67.45),
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        length: int = 20,
        blocks: list[int] | None = None,
        identity_epochs: int | None = None,
        prompt_momentum: float = 0.01,
        contrastive_weight: float = 0.1,
        prompt_rate_factor: float = 10.0,
        identity_rate_factor: float = 0.2,
        align: bool = True,
        centroids: int = 1,
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
        if contrastive_weight > 0:  # it needs them without alignment too
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
        """In training the task is known."""
        return not self.training

    def check_stream(self, tasks: Sequence[TaskSpan]) -> None:
        check_tasks(self, tasks, self.prompts.shape[2])
        again = next((task for task in tasks if task.classes[0] < task.start), None)
        if again is not None:
            raise UserError(
                f"method: {type(self).__name__} tells an image's task from its class, and classes "
                f"come again in task "
                f"{again.index + 1} of this stream; choose a method that does not, such as coda "
                f"or smope"
            )

    def needs_whole_batch(self) -> Coupling | None:
        """The contrastive term tells an image's feature from all others of the batch."""
        if self.contrastive_weight > 0:
            setting = f"method.contrastive_weight={self.contrastive_weight:g}"
            return Coupling(setting, "method.contrastive_weight=0")
        return super().needs_whole_batch()

    @torch.no_grad()
    def begin_task(self, task: TaskSpan) -> None:
        super().begin_task(task)
        self.identity.begin_task(task)
        if task.index > 0:
            self.prompts[:, :, task.index] = self.prompts[:, :, task.index - 1]

    def phases(self, task: TaskSpan, epochs: int, dense_epochs: int) -> list[Phase]:
        first = epochs if self.identity_epochs is None else self.identity_epochs
        return [*([Phase("identity", first)] if first else []), Phase("prompts", epochs)]

    def begin_phase(self, phase: Phase) -> None:
        self._learning_identity = phase.name == "identity"

    def choose(self, query: Tensor) -> Choice:
        if self.training:
            return self._of_task(len(query), self._momentum_mix())
        ids = self.identity(query).unsqueeze(1)
        if "vote" in self.authors_bug:
            ids = vote(ids, self.prompts.shape[2])
        return Choice(self._prefixes(pick(self.prompts, ids, self.authors_bug)))

    def _of_task(self, images: int, prompt: Tensor) -> Choice:
        """One task's prompt (L, 2, P, W) for all of so many images."""
        ids = torch.zeros(images, 1, dtype=torch.int64, device=prompt.device)
        return Choice(self._prefixes(pick(prompt.unsqueeze(2), ids, self.authors_bug)))

    def _prefixes(self, rows: Tensor) -> list[Prefix]:
        """rows (L, 2, B, P, W) -> a prefix a block."""
        return prefixes(rows)

    def _momentum_mix(self) -> Tensor:
        """The task's prompt with its share of the earlier ones' mean, (L, 2, P, W)."""
        index = int(self.task)
        prompt = self.prompts[:, :, index]
        if index == 0:
            return prompt
        earlier = self.prompts[:, :, :index].detach().mean(2)
        return (1 - self.prompt_momentum) * prompt + self.prompt_momentum * earlier

    def task_features(self, images: Tensor, task: TaskSpan) -> Tensor:
        """With the task's own prompt, as in training."""
        return self.prompted(images, self._of_task(len(images), self.prompts[:, :, task.index]))

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

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        """What training mixed in stays."""
        self.prompts[:, :, task.index] = self._momentum_mix()

    def aligned(self) -> Sequence[Aligned]:
        return [self.identity, *super().aligned()]

    def recorded(self) -> Sequence[Aligned]:
        """The contrastive term needs class means whether or not the classifier is aligned."""
        return (
            [self.identity, self] if self.align or self.contrastive_weight > 0 else [self.identity]
        )

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
    """Cross-entropy of telling each feature (B, C) and class mean (n, C) from all others by inner
    product.
    """
    points = torch.cat([means, features.to(means.dtype)])
    with torch.autocast(points.device.type, enabled=False):  # products of whole features are large
        return F.cross_entropy(
            points @ points.T / TEMPERATURE, torch.arange(len(points), device=points.device)
        )
