"""For methods that learn from one pass over a task's features, without gradients.

Letters: K classes, C features, G groups of classes with their own scatter matrix, n images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.distributed import collectives
from smope.errors import UserError
from smope.methods._shared.class_statistics import class_noise, mean_cosines
from smope.methods.base import Batches, Method, Phase, TaskSpan

SAME_IMAGES = 1e-3  # relative difference of sums of features that another machine may cause
CLASS_MEANS = "the mean of each class"  # what some methods remember of a class

# Logits of fits to one-hot labels, and cosines, lie in about 0..1, where softmax makes all classes
# nearly equal. Divided by these they give probabilities. Chosen on held-out images of three data
# sets with 5 to 100 classes: benchmarks/results/calibration.md. Constants, and not fitted to the
# images of a task, so that logits depend on no order of tasks, and forgetting stays exact.
ONE_HOT_TEMPERATURE = 0.05
COSINE_TEMPERATURE = 0.03


class OnePass(Method):
    """Takes no training steps. A subclass learns in end_task, from what features_of() gives."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, num_classes, align=False)
        self.classifier.requires_grad_(False)

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        return []

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return []

    def trains(self, task: TaskSpan) -> bool:
        return False


def features_of(
    method: Method,
    batches: Batches,
    device: torch.device,
    compute: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The features of a task's training images, each image once, through the evaluation transform.

    Each of several processes gets the features of all images, so that all learn the same.

    Args:
        method: computes the features.
        batches: the argument of Method.end_task.
        device: where features and labels are put.
        compute: images -> features, if not those of the method.

    Returns:
        Features (n, C) in float64 and labels (n,), batch by batch.

    Raises:
        UserError: a feature is not a finite number.
    """
    for images, labels in batches("plain"):
        features = collectives.gathered((compute or method.features)(images))
        labels = collectives.gathered(labels)
        if not features.isfinite().all():
            raise UserError(
                "backbone: its features are not finite numbers; choose another backbone.name or "
                "backbone.weights, or trainer.precision=float32"
            )
        yield features.to(device).double(), labels.to(device)


def refuse_other_images(remembered: Tensor, given: Tensor) -> None:
    """Check that images are those that a class was learned from.

    Args:
        remembered: the sum or mean of the class's features, (C,).
        given: that of the images.

    Raises:
        UserError: they differ by more than rounding.
    """
    if not (given - remembered).norm() <= SAME_IMAGES * remembered.norm():
        raise UserError(
            "--images: these are not the images that the class was learned from; give all of them "
            "and no other (of a run that drew its test images: the folder that it was given), or "
            "leave --images out"
        )


def joined(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features (n, C) and labels (n,) of all batches, concatenated."""
    features, labels = zip(*pairs, strict=True)
    return torch.cat(features), torch.cat(labels)


class FixedPrecision(nn.Module):
    """A module whose buffers keep their precision when the module around it changes its own.

    Sums over many images need float64. On an accelerator without float64 they stay on the CPU.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedPrecision:
        device = fn(torch.empty(0, device=next(self.buffers()).device)).device
        for name, buffer in self._buffers.items():
            assert buffer is not None
            self._buffers[name] = buffer.to("cpu" if device.type == "mps" else device)
        return self


class ClassMoments(FixedPrecision):
    """Number of images and mean feature of each class, and the scatter around these means.

    Buffers: counts (K,), means (K, C), scatter (G, C, C). Their values depend on the images alone,
    up to rounding: not on the order of images nor on the tasks in which they came.

    Args:
        num_classes: K.
        width: C.
        covariance: "shared", one scatter matrix for all classes (G = 1), or "class" (G = K).
        dtype: of means and scatter.
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
        """Add images, by the formula for combining the moments of two samples (Chan et al. 1983).

        Args:
            features: (n, C) in float64.
            labels: (n,).
        """
        for label in labels.unique().tolist():
            rows = features[labels == label]
            mean, earlier = rows.mean(0), int(self.counts[label])
            share = len(rows) / (earlier + len(rows))
            shift = mean - self.means[label]
            centred = rows - mean
            group = label if len(self.scatter) > 1 else 0
            self.scatter[group] += centred.T @ centred + share * earlier * torch.outer(shift, shift)
            self.means[label] += share * shift
            self.counts[label] += len(rows)

    @torch.no_grad()
    def withdraw(self, label: int, features: Tensor | None) -> None:
        """Take a class out of a scatter matrix that all classes share.

        Args:
            label: the class.
            features: (n, C) in float64 of its images. None: its share stays in the matrix, and the
                covariance as it is.

        Raises:
            UserError: these are not its images.
        """
        freedom = (self.counts - 1).clamp(min=0)
        if features is None:
            remaining = (freedom.sum() - freedom[label]).clamp(min=1)
            self.scatter[0] *= float(remaining / freedom.sum().clamp(min=1))
        else:
            mean = features.mean(0)
            if len(features) != self.counts[label]:
                mean = mean * float("nan")
            refuse_other_images(self.means[label], mean.to(self.means))
            centred = (features - features.mean(0)).to(self.scatter)
            self.scatter[0] -= centred.T @ centred
        self.counts[label] = 0
        self.means[label] = 0

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw from the Gaussian of each class, the same at every call.

        Args:
            count: samples of a class.

        Returns:
            Features (n, C) in float64 and labels (n,).
        """
        labels = self.counts.nonzero()[:, 0]
        noise = class_noise(labels, count, self.means.shape[1]).to(self.scatter.device)
        root = _root(self.covariance(0)) if len(self.scatter) == 1 else None
        samples = [
            self.means[label] + drawn @ (_root(self.covariance(label)) if root is None else root).T
            for label, drawn in zip(labels.tolist(), noise, strict=True)
        ]
        return torch.cat(samples), labels.repeat_interleave(count)

    def class_cosines(self, features: Tensor) -> Tensor | None:
        """Features (B, C) -> cosines (B, K) with the class means; see `mean_cosines`."""
        labels = self.counts.nonzero()[:, 0]
        return mean_cosines(features, labels, self.means[labels], len(self.counts))

    def covariance(self, group: int) -> Tensor:
        """The unbiased covariance of one group, (C, C) float64; zero if no class has two images."""
        class_freedom = (self.counts - 1).clamp(min=0)
        freedom = class_freedom[group] if len(self.scatter) > 1 else class_freedom.sum()
        return self.scatter[group].double() / int(freedom.clamp(min=1))


def _root(covariance: Tensor) -> Tensor:
    """R with R·Rᵀ = covariance (C, C), which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
