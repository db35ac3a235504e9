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

CHUNK = 1024  # images whose random features are in memory at once
HELD_OUT = 5  # one image in so many decides about the penalty


class Sums(FixedPrecision):
    """In float64, over all images so far: gram (M, M), the sum of h·hᵀ, and classes (M, K), the sum
    of h a class; penalty (), the λ in use.
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
        """hidden (n, M), targets (n, K), one-hot."""
        self.gram.addmm_(hidden.T, hidden)
        self.classes.addmm_(hidden.T, targets)

    def solve(self, penalty: float) -> Tensor | None:
        """(gram + λ I)^-1 classes, (M, K); None where λ is too small beside the rounding of
        `gram`.
        """
        system = self.gram.clone()
        system.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(system)
        return None if failed else torch.cholesky_solve(self.classes, factor)


class RidgeHead(nn.Module):
    """The least-squares fit of one-hot labels by h = relu(x·projection), x a feature; nothing of it
    is trained.

    W = (gram + λ I)^-1 classes: up to λ those of one fit to all images that `fit` was given, in
    whatever order they came. The projection (C, M) is drawn from N(0, 1) once, and saved.

    width:     M; the paper takes 10000. None: no projection and no relu, h = x.
    exponents: λ is one of 10^a, 10^(a + 1), ..., 10^b for [a, b], the one with the smallest squared
        error on a fifth of
               the images of the last `fit` (every fifth of each class) when the fit is to the
               images of earlier ones and the other four fifths. The authors' program takes earlier
               tasks' images into W but not into the choice. Where no class has two images, λ stays
               what it was, 1 at first. Where rounding makes the system unsolvable with the chosen
               λ, which is then far too small beside the largest eigenvalue of the sums (that grows
               with every image), it is raised tenfold until it is not, if need be beyond 10^b;
               `sums.penalty` is the λ of the weights.

    Buffers weight (K, M), projection (C, M), and those of `sums`; before the first `fit` all logits
    are 0. Memory, whatever the number of images: M² + M·K numbers in float64 and C·M in float32 (41
    MB for M = 2000, 0.85 GB for M = 10000, with ViT-B/16 and 200 classes); twice M² more while it
    is fitted.
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
        """Take in features (n, C) in float64 with labels (n,), all batches together, and solve for
        the weights anew.
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
        """W (M, K) for the λ in use, which is first raised tenfold as often as the system cannot
        be solved with it.
        """
        while (weights := self.sums.solve(float(self.sums.penalty))) is None:
            self.sums.penalty *= 10
        return weights

    def _chunks(self, features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """h and one-hot labels in float64, so many images at once that memory stays bounded."""
        for some, theirs in zip(features.split(CHUNK), labels.split(CHUNK), strict=True):
            yield self._hidden(some), F.one_hot(theirs, len(self.weight)).double()

    def _best_penalty(self, features: Tensor, labels: Tensor) -> float:
        """The λ whose fit to the sums so far has the smallest squared error on these images; the
        largest where none can be solved.
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
    """(n,) bool: every fifth image of each class, or the last of a class with two to four."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        if len(places) > 1:
            chosen[places[HELD_OUT - 1 :: HELD_OUT] if len(places) >= HELD_OUT else places[-1:]] = (
                True
            )
    return chosen
