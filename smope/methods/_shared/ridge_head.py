"""A linear classifier on random features, fitted in closed form (RanPAC, McDonnell et al. 2023,
arXiv 2307.02251).

Letters: K classes, C features, M random features (C where there is no projection), n images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smope.methods._shared.closed_form import FixedPrecision, joined

CHUNK_IMAGES = 1024  # images whose random features are in memory at once
HELD_OUT_EVERY = 5  # one image in so many decides about the penalty


class Sums(FixedPrecision):
    """Sums over all images so far, in float64.

    Buffers: gram (M, M), the sum of h·hᵀ; classes (M, K), the sum of h of each class; penalty (),
    the λ in use.
    """

    gram: Tensor
    classes: Tensor
    penalty: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("gram", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("classes", torch.zeros(width, num_classes, dtype=torch.float64))
        self.register_buffer("penalty", torch.ones((), dtype=torch.float64))

    def add(self, hidden: Tensor, targets: Tensor) -> None:
        """Add images.

        Args:
            hidden: h, (n, M).
            targets: one-hot labels (n, K).
        """
        self.gram.addmm_(hidden.T, hidden)
        self.classes.addmm_(hidden.T, targets)

    def solve(self, penalty: float) -> Tensor | None:
        """(gram + λ I)^-1 classes, (M, K); None if λ is too small for the rounding errors of
        `gram`.
        """
        system = self.gram.clone()
        system.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(system)
        return None if failed else torch.cholesky_solve(self.classes, factor)


class RidgeHead(nn.Module):
    """The least-squares fit of one-hot labels by h = relu(x·projection), where x is a feature.

    The weights are W = (gram + λ I)^-1 classes. Apart from the choice of λ they are those of one
    fit to all images that `fit` was given, in any order. The projection (C, M) is drawn from N(0,
    1) once, and saved. Nothing is trained by gradients.

    How λ is chosen: a fifth of the images of the last `fit` is held out, every fifth of each class.
    For each candidate, W is fitted to all other images, earlier ones included. The λ with the
    smallest squared error on the held-out images is taken. (The authors' code leaves the images of
    earlier tasks out of this choice.) If no class has two images, λ stays as it was; it is 1 at
    first. If rounding makes the system unsolvable with the chosen λ, because that is far too small
    for the largest eigenvalue of the sums, λ is raised tenfold until it can be solved, if necessary
    beyond the candidates. `sums.penalty` is the λ of the weights.

    Buffers: weight (K, M), projection (C, M), and those of `sums`. Before the first `fit` all
    logits are 0. Memory does not depend on the number of images: M² + M·K numbers in float64 and
    C·M in float32 (41 MB for M = 2000, 0.85 GB for M = 10000, with ViT-B/16 and 200 classes), and
    twice M² more while it is fitted.

    Args:
        features: C.
        num_classes: K.
        width: M; the paper has 10000. None: no projection and no relu, h = x.
        exponents: [a, b] for the candidates 10^a, 10^(a + 1), ..., 10^b of λ.
    """

    learning_only = ("sums",)
    weight: Tensor
    projection: Tensor | None

    def __init__(
        self, features: int, num_classes: int, width: int | None, exponents: Sequence[int]
    ) -> None:
        super().__init__()
        hidden = features if width is None else width
        self.register_buffer("weight", torch.zeros(num_classes, hidden))
        self.penalties = [10.0**power for power in range(exponents[0], exponents[1] + 1)]
        self.register_buffer("projection", None if width is None else torch.randn(features, width))
        self.sums = Sums(hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """features (n, C) -> logits (n, K)."""
        return F.linear(self._hidden(features), self.weight)

    def _hidden(self, features: Tensor) -> Tensor:
        """features (n, C) -> h (n, M)."""
        if self.projection is None:
            return features
        return (features @ self.projection.to(features)).relu()

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Add the images of a task, given as features (n, C) in float64 and labels (n,) in batches,
        and solve for the weights.
        """
        features, labels = joined(batches)
        held_out = _held_out(labels)
        for hidden, targets in self._chunks(features[~held_out], labels[~held_out]):
            self.sums.add(hidden, targets)
        if held_out.any():
            self.sums.penalty.fill_(self._best_penalty(features[held_out], labels[held_out]))
        for hidden, targets in self._chunks(features[held_out], labels[held_out]):
            self.sums.add(hidden, targets)
        self.weight.copy_(self._solve_raised().T)

    def _solve_raised(self) -> Tensor:
        """W (M, K); λ is raised tenfold until the system can be solved."""
        while (weights := self.sums.solve(float(self.sums.penalty))) is None:
            self.sums.penalty *= 10
        return weights

    def _chunks(self, features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """h and one-hot labels in float64, for a bounded number of images at once."""
        chunks = zip(features.split(CHUNK_IMAGES), labels.split(CHUNK_IMAGES), strict=True)
        for chunk, chunk_labels in chunks:
            yield self._hidden(chunk), F.one_hot(chunk_labels, len(self.weight)).double()

    def _best_penalty(self, features: Tensor, labels: Tensor) -> float:
        """The λ whose fit to the sums so far has the smallest squared error on these images; the
        largest candidate if none can be solved.
        """
        errors = {}
        for penalty in self.penalties:
            weights = self.sums.solve(penalty)
            if weights is not None:
                chunks = self._chunks(features, labels)
                errors[penalty] = sum(
                    float((hidden @ weights - targets).square().sum()) for hidden, targets in chunks
                )
        return min(errors, key=errors.__getitem__, default=self.penalties[-1])


def _held_out(labels: Tensor) -> Tensor:
    """Every fifth image of each class, or the last one of a class with two to four: (n,) bool."""
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        indices = (labels == label).nonzero()[:, 0]
        if len(indices) >= HELD_OUT_EVERY:
            held_out[indices[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]] = True
        elif len(indices) > 1:
            held_out[indices[-1]] = True
    return held_out
