"""EASE: a subspace for each task, and prototypes of all classes in all of them.

Zhou et al., CVPR 2024, arXiv 2403.12030, after the authors' code. The features of an image with the
adapter of a task are its features in the task's subspace.

    training        cross-entropy of cosines among the classes of the task, with an adapter of the
                    task's own and a classifier that predicts nothing later
    after a task    the task's classes get prototypes, mean features, in all subspaces so far; those
                    of old classes in the new one are synthesised from the task's
    test            T passes after T tasks; the logit of a class is the cosine with its prototype in
                    the subspace of its task, and `old_weight` times the mean cosine in all others

Where this differs from the authors' code: adapters have no biases and read what the MLP reads; they
have no weight decay; the scale of cosines in training is fixed (there it is learned, from 1 on),
and logits at test have it too, which changes no prediction; the optimizer is this trainer's. A
class that comes again belongs to the subspace of its last task.

With AdamW, adapters that learn as fast as the classifier can disturb the features of other classes:
on digits (2 epochs, validation images) 93.4 %, with adapter_rate_factor=0.1 95.5 %, and ncm 95.8 %.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive
from smope.losses.classification import task_cross_entropy
from smope.methods._shared.class_statistics import mean_cosines
from smope.methods._shared.closed_form import CLASS_MEANS, features_of
from smope.methods._shared.task_adapters import TaskAdapters
from smope.methods.base import Batches, Recollection, Reference, TaskSpan


class EASE(TaskAdapters):
    """An ensemble of the subspaces of all tasks.

    Buffers, for K classes, T tasks and C features: prototypes (K, T, C); counts (K, T), images
    behind each, 0 for one that is synthesised; task (K,), in which a class came last.

    Args:
        rank: of the adapters, their bottleneck.
        blocks: where adapters are; None: in every block.
        adapter_scale: what they are multiplied by.
        scale: of cosines, the largest logit in training.
        old_weight: of the subspaces of other tasks, alpha.
        adapter_rate_factor: learning rate of the adapters, as a multiple of the classifier's.
    """

    reference = Reference(
        "Zhou et al. 2024, arXiv 2403.12030, and the authors' code",
        "one pass an image in training, T at test after T tasks (here 10); the "
        "classifier helps to train alone",
    )
    learning_only = ("classifier", "counts")
    prototypes: Tensor
    counts: Tensor
    task: Tensor

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        rank: Annotated[int, AtLeast(1)] = 64,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        adapter_scale: Annotated[float, Positive()] = 0.1,
        scale: Annotated[float, Positive()] = 20.0,
        old_weight: Annotated[float, NotNegative()] = 0.1,
        adapter_rate_factor: Annotated[float, Positive()] = 1.0,
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
            align=False,
        )
        self.old_weight = old_weight
        spaces = num_classes, total_tasks
        self.register_buffer("prototypes", torch.zeros(*spaces, backbone.embed_dim))
        self.register_buffer("counts", torch.zeros(spaces, dtype=torch.int64))
        self.register_buffer("task", torch.zeros(num_classes, dtype=torch.int64))

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        logits = self.classifier(self.features_of_task(images, task))
        return {"cross_entropy": task_cross_entropy(logits, labels, task.classes)}

    def classify(self, features: Tensor) -> Tensor:
        """Features in the n subspaces (B, n·C) -> logits (B, K)."""
        rows = F.normalize(self.by_pass(features), dim=-1)
        spaces = rows.shape[1]
        prototypes = F.normalize(self.prototypes[:, :spaces], dim=-1)
        cosines = torch.einsum("bnc,knc->bkn", rows, prototypes.to(rows))
        own = self.task.unsqueeze(-1) == torch.arange(spaces, device=rows.device)  # (K, n)
        weights = torch.where(own, 1.0, self.old_weight / max(1, spaces - 1)).to(rows)
        return self.classifier.scale * (cosines * weights).sum(-1)

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        # Summed in float64 on the CPU: not every accelerator has it.
        spaces, cpu = self.tasks_learned, torch.device("cpu")
        prototypes, counts = self.prototypes[:, :spaces].to(cpu).double(), self.counts.to(cpu)
        sums = (prototypes * counts[:, :spaces, None]).flatten(1)
        for features, labels in features_of(self, batches, cpu):
            sums.index_add_(0, labels, features)
            counts[:, :spaces] += torch.bincount(labels, minlength=len(counts)).unsqueeze(1)
        self.task[list(task.classes)] = task.index
        self.counts.copy_(counts)
        prototypes = sums.view_as(prototypes) / counts[:, :spaces, None].clamp(min=1)
        synthesise(prototypes, counts[:, :spaces], self.task.to(cpu))
        self.prototypes[:, :spaces] = prototypes.to(self.prototypes)

    @torch.no_grad()
    def recollect(self, count: int) -> Recollection | None:
        labels = self.counts.any(-1).nonzero()[:, 0]
        if not len(labels):
            return None
        means = self.prototypes[labels, : self.tasks_learned].flatten(1)
        return Recollection(self.classify(means), labels, CLASS_MEANS)

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        """Of all subspaces together."""
        labels = self.prototypes.flatten(1).any(-1).nonzero()[:, 0]
        means = self.prototypes[labels].flatten(1)[:, : features.shape[-1]]
        return mean_cosines(features, labels, means, self.num_classes)


def synthesise(prototypes: Tensor, counts: Tensor, task: Tensor) -> None:
    """Write the prototypes of old classes in the subspaces of later tasks.

    A class i of task t is as near to the classes j that have images in the later subspace s as
    their prototypes are in subspace t:

        p_is = Σ_j softmax_j(cosine(p_it, p_jt)) · p_js

    As in the authors' code, they are synthesised anew after each task, from all such classes; in
    the paper once, from those of task s.

    Args:
        prototypes: (K, n, C), changed in place.
        counts: images behind each, (K, n); prototypes without any are written.
        task: the last task of each class, (K,).
    """
    known = counts.any(-1)
    for space in range(1, prototypes.shape[1]):
        sources = counts[:, space] > 0
        for own in range(space):
            missing = known & (task == own) & ~sources
            if missing.any():
                directions = F.normalize(prototypes[:, own], dim=-1)
                likeness = (directions[missing] @ directions[sources].T).softmax(-1)
                prototypes[missing, space] = likeness @ prototypes[sources, space]
