"""Methods that learn from one pass over a task's frozen features, without gradients: what they
share.

Letters: K classes, C features, G groups of classes with a scatter matrix of their own, n images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.distributed import collectives
from smope.errors import UserError
from smope.methods.base import Batches, Method, Phase, TaskSpan


class OnePass(Method):
    """Trains nothing; a subclass learns in end_task, where features_of() gives it each training
    image once.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, num_classes, align=False)
        self.classifier.requires_grad_(False)

    def phases(self, task: TaskSpan, epochs: int, dense_epochs: int) -> list[Phase]:
        return []

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return []


def features_of(
    method: Method, batches: Batches, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (n, C) and labels (n,) of a task's training images, each once, through the
    evaluation transform, in float64 on `device`; memory for one batch at a time. Of several
    processes each is given all of them, so that all learn the same. UserError where a feature is
    not a finite number: nothing can be learned from it.
    """
    for images, labels in batches("plain"):
        features, labels = (
            collectives.gathered(method.features(images)),
            collectives.gathered(labels),
        )
        if not features.isfinite().all():
            raise UserError(
                "backbone: its features are not finite numbers; choose another backbone.name or "
                "backbone.weights, or "
                "trainer.precision=float32"
            )
        yield features.to(device).double(), labels.to(device)


def joined(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features (n, C) and labels (n,) of all batches together."""
    features, labels = zip(*pairs, strict=True)
    return torch.cat(features), torch.cat(labels)


class FixedPrecision(nn.Module):
    """Its buffers keep the precision they were made in, whatever the module around them is moved
    to.

    Sums over many images need float64; they stay on the CPU where an accelerator does not have it.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedPrecision:
        device = fn(torch.empty(0, device=next(self.buffers()).device)).device
        for name, buffer in self._buffers.items():
            assert buffer is not None
            self._buffers[name] = buffer.to("cpu" if device.type == "mps" else device)
        return self


class ClassMoments(FixedPrecision):
    """Of each class the number of images and their mean; within classes the scatter about these
    means.

    covariance: "shared", one matrix for all classes (G = 1), or "class" (G = K). Buffers counts
    (K,), means (K, C), scatter (G, C, C): their size follows from K and C alone, and what they
    hold, to rounding, from the images alone, not from their order nor from the tasks in which they
    came.
    """

    counts: Tensor
    means: Tensor
    scatter: Tensor

    def __init__(
        self,
        num_classes: int,
        width: int,
        covariance: Literal["shared", "class"],
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        groups = num_classes if covariance == "class" else 1
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("means", torch.zeros(num_classes, width, dtype=dtype))
        self.register_buffer("scatter", torch.zeros(groups, width, width, dtype=dtype))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (n, C) in float64 with labels (n,): Chan et al. 1983, two samples'
        moments in one.
        """
        for label in labels.unique().tolist():
            rows = features[labels == label]
            mean, earlier = rows.mean(0), int(self.counts[label])
            share = len(rows) / (earlier + len(rows))
            apart = mean - self.means[label]
            centred = rows - mean
            group = label if len(self.scatter) > 1 else 0
            self.scatter[group] += centred.T @ centred + share * earlier * torch.outer(apart, apart)
            self.means[label] += share * apart
            self.counts[label] += len(rows)

    def covariance(self, group: int) -> Tensor:
        """(C, C) float64, the unbiased estimate of one group; zero where no class of it has two
        images.
        """
        spare = (self.counts - 1).clamp(min=0)
        freedom = spare[group] if len(self.scatter) > 1 else spare.sum()
        return self.scatter[group].double() / int(freedom.clamp(min=1))
