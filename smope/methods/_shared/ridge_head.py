"""A linear classifier on random features, fitted in closed form (RanPAC, McDonnell et al. 2023,
arXiv 2307.02251).

Letters: K classes, C features, M random features (C where there is no projection), n images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smope.methods._shared.class_statistics import mean_cosines
from smope.methods._shared.closed_form import (
    CLASS_MEANS,
    ONE_HOT_TEMPERATURE,
    joined,
    refuse_other_images,
)
from smope.methods._shared.ridge_sums import GCV_FACTORS, UNKNOWN, Sums
from smope.methods.base import Recollection

PenaltyRule = Literal["gcv", "last_fifth"]
CHUNK_IMAGES = 1024  # images whose random features are in memory at once
HELD_OUT_EVERY = 5  # one image in so many decides about the penalty


class RidgeHead(nn.Module):
    """The least-squares fit of one-hot labels by h = relu(x·projection), where x is a feature.

    The weights are W = (gram + λ I)^-1 classes. Apart from the choice of λ they are those of one
    fit to all images that `fit` was given, in any order. The projection (C, M) is drawn from N(0,
    1) once, and saved. Nothing is trained by gradients. Logits are h·W / 0.05, so that their
    softmax is a probability (closed_form.ONE_HOT_TEMPERATURE).

    How λ is chosen with penalty_rule="gcv": by generalised cross-validation over all images of all
    tasks, see Sums.generalised_error. Nothing is held out.

    With "last_fifth": a fifth of the images of the last `fit` is held out, every fifth of each
    class. For each candidate of `exponents`, W is fitted to all other images, earlier ones
    included. The λ with the smallest squared error on the held-out images is taken. (The authors'
    code leaves the images of earlier tasks out of this choice.) If no class has two images, λ does
    not change; before the first `fit` it is 1. Sums of an earlier version are continued by this
    rule, since they lack the number of images.

    If rounding makes the system unsolvable with the chosen λ, because that is far too small for the
    largest eigenvalue of the sums, λ is raised tenfold until it can be solved, if necessary beyond
    the candidates. `sums.penalty` is the λ of the weights.

    Buffers: weight (K, M), projection (C, M), and those of `sums`. Before the first `fit` all
    logits are 0. Memory grows with the images up to M/2 of them, and is then M²/2 + M·K numbers in
    float64 and C·M in float32 (0.1 GB for M = 5000 with ViT-B/16 and 200 classes); three times M²
    more while it is fitted.

    Args:
        features: C.
        num_classes: K.
        width: M; the paper has 10000. None: no projection and no relu, h = x.
        exponents: [a, b] for the candidates 10^a, 10^(a + 1), ..., 10^b of λ with "last_fifth".
        penalty_rule: how λ is chosen.
    """

    learning_only = ("sums",)
    weight: Tensor
    projection: Tensor | None

    def __init__(
        self,
        features: int,
        num_classes: int,
        width: int | None,
        exponents: Sequence[int],
        penalty_rule: PenaltyRule,
    ) -> None:
        super().__init__()
        hidden = features if width is None else width
        self.register_buffer("weight", torch.zeros(num_classes, hidden))
        self.penalty_rule = penalty_rule
        self.penalties = [10.0**power for power in range(exponents[0], exponents[1] + 1)]
        self.register_buffer("projection", None if width is None else torch.randn(features, width))
        self.sums = Sums(hidden, num_classes)

    def remarks(self) -> list[str]:
        """A line where the penalty of the last `fit` may be too small or too large."""
        if not self.sums.at_the_edge:
            return []
        unit = "times the mean squared length of the random features"
        return [
            f"ridge: the penalty is {float(self.sums.penalty):.3g}, an end of the range that is "
            f"searched ({GCV_FACTORS[0]:g} to {GCV_FACTORS[-1]:g} {unit}); "
            "method.penalty_rule=last_fifth searches method.exponents"
        ]

    def forward(self, features: Tensor) -> Tensor:
        """features (n, C) -> logits (n, K)."""
        return F.linear(self.hidden(features), self.weight) / ONE_HOT_TEMPERATURE

    def hidden(self, features: Tensor) -> Tensor:
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
        if self._by_generalised_error:
            for hidden, targets in self._chunks(features, labels):
                self.sums.add(hidden, targets)
        else:
            self._add_and_hold_out(features, labels)
        self._solve()

    @torch.no_grad()
    def refit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Forget all images, and then `fit`."""
        self.sums.clear()
        self.fit(batches)

    @torch.no_grad()
    def preview(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Solve for the weights that `fit` would give, and forget the images again."""
        sums = copy.deepcopy(self.sums)
        self.fit(batches)
        self.sums = sums

    @torch.no_grad()
    def recollect(self) -> Recollection | None:
        """Classify the mean h of each class; None before the first `fit`."""
        sums = self.sums.class_sums().T
        labels = sums.any(1).nonzero()[:, 0]
        if not len(labels):
            return None
        # Without a bias, the length of h changes no order of logits.
        means = F.normalize(sums[labels], dim=-1).to(self.weight)
        return Recollection(F.linear(means, self.weight), labels.to(means.device), CLASS_MEANS)

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        """Features (n, C) -> cosines (n, K) of h with the mean h of each class; None before the
        first `fit`.
        """
        sums = self.sums.class_sums().T
        labels = sums.any(1).nonzero()[:, 0]
        hidden = self.hidden(features.to(sums))
        return mean_cosines(hidden, labels, sums[labels], len(self.weight))

    @torch.no_grad()
    def withdraw(self, label: int, features: Tensor) -> None:
        """Take all images of a class out of the sums, and solve again.

        With penalty_rule="gcv" the weights are then those of a fit without these images. With
        "last_fifth" λ stays as it is.

        Args:
            label: the class.
            features: (n, C) in float64.

        Raises:
            UserError: these are not the images of the class.
        """
        hidden = self.hidden(features.to(self.sums.penalty.device))
        refuse_other_images(self.sums.class_sums()[:, label], hidden.sum(0))
        self.sums.remove(hidden, label)
        self._solve()

    @property
    def _by_generalised_error(self) -> bool:
        return self.penalty_rule == "gcv" and bool(self.sums.images != UNKNOWN)

    def _add_and_hold_out(self, features: Tensor, labels: Tensor) -> None:
        """Add images, and choose λ by a fifth of them that is added last."""
        held_out = _held_out(labels)
        for hidden, targets in self._chunks(features[~held_out], labels[~held_out]):
            self.sums.add(hidden, targets)
        if held_out.any():
            self.sums.penalty.fill_(self._best_penalty(features[held_out], labels[held_out]))
        for hidden, targets in self._chunks(features[held_out], labels[held_out]):
            self.sums.add(hidden, targets)

    def _solve(self) -> None:
        """Solve for the weights; with penalty_rule="gcv", choose λ first."""
        weights = None
        if self._by_generalised_error:
            penalty, weights = self.sums.best_by_generalised_error()
            self.sums.penalty.fill_(penalty)
        self.weight.copy_((self._solve_raised() if weights is None else weights).T)

    def _solve_raised(self) -> Tensor:
        """W (M, K); λ is raised tenfold until the system can be solved."""
        system = self.sums.system()
        while (weights := self.sums.solve(float(self.sums.penalty), system)) is None:
            self.sums.penalty *= 10
        return weights

    def _chunks(self, features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """h and one-hot labels in float64, for a bounded number of images at once."""
        chunks = zip(features.split(CHUNK_IMAGES), labels.split(CHUNK_IMAGES), strict=True)
        for chunk, chunk_labels in chunks:
            yield self.hidden(chunk), F.one_hot(chunk_labels, len(self.weight)).double()

    def _best_penalty(self, features: Tensor, labels: Tensor) -> float:
        """The λ whose fit to the sums so far has the smallest squared error on these images; the
        largest candidate if none can be solved.
        """
        errors = {}
        system = self.sums.system()
        for penalty in self.penalties:
            weights = self.sums.solve(penalty, system)
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
