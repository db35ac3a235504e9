"""Ridge regression on random features (RanPAC, McDonnell et al. 2023, arXiv 2307.02251).

Letters: K classes, C features, M random features (C where there is no projection), n images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.errors import UserError
from smope.methods.base import Batches, Card, TaskSpan
from smope.methods.one_pass import FixedPrecision, OnePass

CHUNK = 1024  # images whose random features are in memory at once
HELD_OUT = 5  # one image in so many decides about the penalty


class Sums(FixedPrecision):
    """In float64, over all images so far: gram (M, M), the sum of h·hᵀ, and classes (M, K), the sum of h a class;
    penalty (), the λ in use."""

    gram: Tensor
    classes: Tensor
    penalty: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("gram", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("classes", torch.zeros(width, num_classes, dtype=torch.float64))
        self.register_buffer("penalty", torch.ones((), dtype=torch.float64))

    def add(self, hidden: Tensor, targets: Tensor) -> None:
        """hidden (n, M), targets (n, K), one-hot."""
        self.gram.addmm_(hidden.T, hidden)
        self.classes.addmm_(hidden.T, targets)

    def solve(self, penalty: float) -> Tensor | None:
        """(gram + λ I)^-1 classes, (M, K); None where λ is too small beside the rounding of `gram`."""
        system = self.gram.clone()
        system.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(system)
        return None if failed else torch.cholesky_solve(self.classes, factor)


class Ridge(OnePass):
    """The least-squares fit of one-hot labels by h = relu(x·projection), x the frozen feature.

    W = (gram + λ I)^-1 classes: up to λ those of one fit to the images of all tasks so far, in whatever order they
    came. The projection (C, M) is drawn from N(0, 1) once, and saved.

    width:     M; the paper takes 10000. null: no projection and no relu, h = x.
    exponents: λ is one of 10^a, 10^(a + 1), ..., 10^b for [a, b], the one with the smallest squared error on a fifth of
               the current task's images (every fifth of each class) when the fit is to the images of earlier tasks
               and the other four fifths. The authors' program takes earlier tasks' images into W but not into the
               choice. Where no class has two images, λ stays what it was, 1 at first.
               Where rounding makes the system unsolvable with the chosen λ, which is then far too small beside the
               largest eigenvalue of the sums (that grows with every image), it is raised tenfold until it is not, if
               need be beyond 10^b; `sums.penalty` is the λ of the weights.

    The first task's fine-tuning of the paper is left out: the backbone is used as it comes.
    Memory, whatever the number of images: M² + M·K numbers in float64 and C·M in float32 (41 MB for M = 2000, 0.85 GB
    for M = 10000, with ViT-B/16 and 200 classes); twice M² more while a task is learned, and that task's features.
    """

    card = Card(
        "McDonnell et al. 2023, arXiv 2307.02251 (RanPAC)",
        "one pass over frozen features, nothing is trained; without the paper's fine-tuning on the first task",
    )
    projection: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        width: int | None = 2000,
        exponents: Sequence[int] = (-8, 8),
    ) -> None:
        super().__init__(backbone, num_classes)
        self.penalties = [10.0**power for power in range(exponents[0], exponents[1] + 1)]
        inputs = backbone.embed_dim if width is None else width
        self.classifier = nn.Linear(inputs, num_classes, bias=False).requires_grad_(False)
        self.register_buffer("projection", None if width is None else torch.randn(backbone.embed_dim, width))
        self.sums = Sums(inputs, num_classes)

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self._hidden(features))

    def _hidden(self, features: Tensor) -> Tensor:
        """features (n, C) -> h (n, M)."""
        if self.projection is None:
            return features
        return (features @ self.projection.to(features)).relu()

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        pairs = list(self.features_of(batches, self.sums.gram.device))
        features, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
        held_out = _held_out(labels)
        for hidden, targets in self._chunks(features[~held_out], labels[~held_out]):
            self.sums.add(hidden, targets)
        if held_out.any():
            self.sums.penalty.fill_(self._best_penalty(features[held_out], labels[held_out]))
        for hidden, targets in self._chunks(features[held_out], labels[held_out]):
            self.sums.add(hidden, targets)
        self.classifier.weight.copy_(self._solve_raised().T)

    def _solve_raised(self) -> Tensor:
        """W (M, K) for the λ in use, which is first raised tenfold as often as the system cannot be solved with it."""
        if not self.sums.gram.trace().isfinite():  # no λ would do
            raise UserError(
                f"method: {type(self).__name__} got features that are not finite numbers from the backbone; choose "
                "another backbone.name or backbone.weights, or trainer.precision=float32"
            )
        while (weights := self.sums.solve(float(self.sums.penalty))) is None:
            self.sums.penalty *= 10
        return weights

    def _chunks(self, features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """h and one-hot labels in float64, so many images at once that memory stays bounded."""
        for some, theirs in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            yield self._hidden(some), F.one_hot(theirs, self.num_classes).double()

    def _best_penalty(self, features: Tensor, labels: Tensor) -> float:
        """The λ whose fit to the sums so far has the smallest squared error on these images; the largest where none can
        be solved."""
        errors = {}
        for penalty in self.penalties:
            weights = self.sums.solve(penalty)
            if weights is not None:
                chunks = self._chunks(features, labels)
                errors[penalty] = sum(float((hidden @ weights - targets).square().sum()) for hidden, targets in chunks)
        return min(errors, key=errors.__getitem__, default=self.penalties[-1])


def _held_out(labels: Tensor) -> Tensor:
    """(n,) bool: every fifth image of each class, or the last of a class with two to four."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        if len(places) > 1:
            chosen[places[HELD_OUT - 1 :: HELD_OUT] if len(places) >= HELD_OUT else places[-1:]] = True
    return chosen
