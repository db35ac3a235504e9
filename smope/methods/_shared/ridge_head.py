"""A linear classifier on random features, fitted in closed form (RanPAC, McDonnell et al. 2023,
arXiv 2307.02251).

Letters: K classes, C features, M random features (C where there is no projection), n images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smope.methods._shared.closed_form import (
    CLASS_MEANS,
    FixedPrecision,
    joined,
    refuse_other_images,
)
from smope.methods.base import Recollection

PenaltyRule = Literal["gcv", "last_fifth"]
CHUNK_IMAGES = 1024  # images whose random features are in memory at once
HELD_OUT_EVERY = 5  # one image in so many decides about the penalty
# Candidates for λ in units of the mean squared length of h: half decades from 0.005 to 5.
GCV_FACTORS = tuple(5 * 10.0 ** (-step / 2) for step in range(6, -1, -1))
INVERTED_AT_ONCE = 256  # rows of a triangular matrix
SEPARATE = 1e-6  # from orthonormal, as far as rows still tell images apart
UNKNOWN = -1  # images of sums that an earlier version wrote


class Sums(FixedPrecision):
    """What ridge regression needs of all images so far, in float64.

    That is gram (M, M), the sum of h·hᵀ, and the sum of h of each class (M, K). Of up to M/2 images
    less is kept: rows whose sums these are. The rows are random rotations of the images' h, so that
    no row belongs to an image. Of more images the upper half of gram is kept, which is symmetric.

    Buffers: rows (r, M) and targets (r, K), empty beyond M/2 images; triangle (M·(M + 1)/2,) and
    classes (M, K), empty up to there; images (), their number n; penalty (), the λ in use.
    """

    at_the_edge = False  # whether the last choice among GCV_FACTORS took the first or last of them
    rows: Tensor
    targets: Tensor
    triangle: Tensor
    classes: Tensor
    images: Tensor
    penalty: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.width = width
        self.num_classes = num_classes
        self.register_buffer("rows", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("targets", torch.zeros(0, num_classes, dtype=torch.float64))
        self.register_buffer("triangle", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("classes", torch.zeros(0, num_classes, dtype=torch.float64))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))
        self.register_buffer("penalty", torch.ones((), dtype=torch.float64))

    @property
    def in_rows(self) -> bool:
        """Whether rows are kept, and not yet the sums."""
        return not len(self.triangle)

    def gram(self) -> Tensor:
        """The sum of h·hᵀ, (M, M)."""
        return self.rows.T @ self.rows if self.in_rows else unpacked(self.triangle, self.width)

    def class_sums(self) -> Tensor:
        """The sum of h of each class, (M, K)."""
        return self.rows.T @ self.targets if self.in_rows else self.classes

    def bytes_after(self, images: int) -> int:
        """Bytes of the sums once so many images have been added to an empty one, beyond those of an
        empty one.
        """
        if images <= self.width // 2:
            return 8 * images * (self.width + self.num_classes)
        return 8 * (self.width * (self.width + 1) // 2 + self.width * self.num_classes)

    def add(self, hidden: Tensor, targets: Tensor) -> None:
        """Add images.

        Args:
            hidden: h, (n, M).
            targets: one-hot labels (n, K).
        """
        if self.images != UNKNOWN:
            self.images += len(hidden)
        if self.in_rows and len(self.rows) + len(hidden) <= self.width // 2:
            rotation = _rotation(len(hidden)).to(hidden)
            self.rows = torch.cat([self.rows, rotation @ hidden])
            self.targets = torch.cat([self.targets, rotation @ targets])
            return
        gram, classes = self.gram(), self.class_sums()
        self.triangle = packed(gram.addmm_(hidden.T, hidden))
        self.classes = classes + hidden.T @ targets
        self.rows, self.targets = self.rows[:0].clone(), self.targets[:0].clone()

    def remove(self, hidden: Tensor, label: int) -> None:
        """Take all images of a class out.

        Args:
            hidden: their h, (n, M).
            label: the class.
        """
        if self.images != UNKNOWN:
            self.images -= len(hidden)
        if not (self.in_rows and self._remove_from_rows(hidden, label)):
            gram, classes = self.gram(), self.class_sums()
            self.triangle = packed(gram.addmm_(hidden.T, hidden, alpha=-1))
            self.classes = classes.clone()
            self.rows, self.targets = self.rows[:0].clone(), self.targets[:0].clone()
        (self.targets if self.in_rows else self.classes)[:, label] = 0

    def _remove_from_rows(self, hidden: Tensor, label: int) -> bool:
        """Take images out of the rows, if the rows tell them apart from all others.

        With R the rows, U'R = h for orthonormal U, one column an image. Rows whose sums lack these
        images are C'R, with C the orthogonal complement of U.
        """
        factor = _factor(self.rows @ self.rows.T, 0.0)
        if factor is None:
            return False
        directions = torch.cholesky_solve(self.rows @ hidden.T, factor)
        identity = torch.eye(len(hidden), dtype=hidden.dtype, device=hidden.device)
        complement = torch.linalg.qr(directions, mode="complete").Q[:, len(hidden) :]
        left_over = (complement.T @ self.targets)[:, label]
        deviation = max((directions.T @ directions - identity).abs().max(), left_over.abs().max())
        if not deviation <= SEPARATE:
            return False
        self.rows, self.targets = complement.T @ self.rows, complement.T @ self.targets
        return True

    def system(self) -> Tensor:
        """The smaller of the two matrices to which λ I is added: that of products of rows, (r, r),
        or gram, (M, M).
        """
        return self.rows @ self.rows.T if self.in_rows else self.gram()

    def solve(self, penalty: float, system: Tensor) -> Tensor | None:
        """(gram + λ I)^-1 times the sums of the classes.

        Args:
            penalty: λ.
            system: what `system()` gives; it stays the same for all λ.

        Returns:
            (M, K); None if λ is too small for the rounding errors of the sums.
        """
        factor = _factor(system, penalty)
        if factor is None:
            return None
        # With H the rows and T their targets, (H'H + λI)^-1 H'T = H' (HH' + λI)^-1 T.
        if self.in_rows:
            return self.rows.T @ torch.cholesky_solve(self.targets, factor)
        return torch.cholesky_solve(self.classes, factor)

    def generalised_error(self, penalty: float, system: Tensor) -> float:
        """The generalised cross-validation error of λ (Golub, Heath and Wahba 1979).

        That is R / (n - df)², with R the squared error of the fit on the images that it was fitted
        to, and df = tr(gram (gram + λ I)^-1).

        Args:
            penalty: λ.
            system: what `system()` gives.

        Returns:
            The error; infinite if λ is too small to solve with.
        """
        factor = _factor(system, penalty)
        if factor is None:
            return float("inf")
        trace = float(triangular_inverse(factor).square().sum())  # of the inverse of the system
        if self.in_rows:
            # Here n - df = λ·trace and the error of an image is λ times its dual variable.
            return float(torch.cholesky_solve(self.targets, factor).square().sum()) / trace**2
        weights, images = torch.cholesky_solve(self.classes, factor), int(self.images)
        fitted = float((weights * self.classes).sum() + penalty * weights.square().sum())
        freedom = images - self.width + penalty * trace
        return (images - fitted) / freedom**2

    def best_by_generalised_error(self) -> float:
        """The candidate λ with the smallest generalised_error.

        The search goes downhill from the middle of GCV_FACTORS.
        """
        system = self.system()
        unit = float(system.diagonal().sum()) / int(self.images)
        errors: dict[int, float] = {}

        def error(step: int) -> float:
            if step not in errors:
                errors[step] = self.generalised_error(GCV_FACTORS[step] * unit, system)
            return errors[step]

        best, last = len(GCV_FACTORS) // 2, len(GCV_FACTORS) - 1
        while True:
            near = range(max(best - 1, 0), min(best + 1, last) + 1)
            better = min(near, key=lambda step: (error(step), step != best))
            if better == best:
                self.at_the_edge = best in (0, last)
                return GCV_FACTORS[best] * unit
            best = better

    def adopt_state(self, state: dict[str, Tensor], prefix: str) -> None:
        """Take the sizes of a stored state; convert the state of an earlier version.

        Args:
            state: Method.trained_state(); changed in place.
            prefix: of the names of this module in it.
        """
        gram = state.pop(f"{prefix}gram", None)
        if gram is not None:
            state[f"{prefix}triangle"] = packed(gram)
            state[f"{prefix}images"] = torch.tensor(UNKNOWN)
            for name in ("rows", "targets"):
                state[f"{prefix}{name}"] = getattr(self, name)[:0].to(gram.device)
        for name in ("rows", "targets", "triangle", "classes"):
            stored = state.get(f"{prefix}{name}")
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=self.penalty.device))


def _factor(system: Tensor, penalty: float) -> Tensor | None:
    """The Cholesky factor of system + λ I; None where there is none."""
    penalised = system.clone()
    penalised.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(penalised)
    return None if failed else factor


def packed(symmetric: Tensor) -> Tensor:
    """(M, M) -> its upper triangle row by row, (M·(M + 1)/2,)."""
    return torch.cat([row[index:] for index, row in enumerate(symmetric)])


def unpacked(triangle: Tensor, width: int) -> Tensor:
    """The symmetric matrix of packed().

    Args:
        triangle: (M·(M + 1)/2,).
        width: M.

    Returns:
        (M, M).
    """
    symmetric = triangle.new_empty(width, width)
    for index, row in enumerate(triangle.split(list(range(width, 0, -1)))):
        symmetric[index, index:] = row
        symmetric[index:, index] = row
    return symmetric


def triangular_inverse(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix (M, M), by halves: most of it is matrix products."""
    size = len(lower)
    if size <= INVERTED_AT_ONCE:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False)
    half = size // 2
    inverse = torch.zeros_like(lower)
    inverse[:half, :half] = first = triangular_inverse(lower[:half, :half])
    inverse[half:, half:] = second = triangular_inverse(lower[half:, half:])
    inverse[half:, :half] = -second @ (lower[half:, :half] @ first)
    return inverse


def _rotation(size: int) -> Tensor:
    """A random orthogonal matrix (size, size) in float64, always the same for a size."""
    generator = torch.Generator().manual_seed(size)
    gaussian = torch.randn(size, size, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(gaussian).Q


class RidgeHead(nn.Module):
    """The least-squares fit of one-hot labels by h = relu(x·projection), where x is a feature.

    The weights are W = (gram + λ I)^-1 classes. Apart from the choice of λ they are those of one
    fit to all images that `fit` was given, in any order. The projection (C, M) is drawn from N(0,
    1) once, and saved. Nothing is trained by gradients.

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
        if self._by_generalised_error:
            for hidden, targets in self._chunks(features, labels):
                self.sums.add(hidden, targets)
            self.sums.penalty.fill_(self.sums.best_by_generalised_error())
        else:
            self._add_and_hold_out(features, labels)
        self.weight.copy_(self._solve_raised().T)

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
        hidden = self._hidden(features.to(self.sums.penalty.device))
        refuse_other_images(self.sums.class_sums()[:, label], hidden.sum(0))
        self.sums.remove(hidden, label)
        if self._by_generalised_error:
            self.sums.penalty.fill_(self.sums.best_by_generalised_error())
        self.weight.copy_(self._solve_raised().T)

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
            yield self._hidden(chunk), F.one_hot(chunk_labels, len(self.weight)).double()

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
