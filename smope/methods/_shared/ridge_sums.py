"""The sums that ridge regression needs of all images, and what is computed from them.

Letters: K classes, M random features, n images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smope.errors import UserError
from smope.methods._shared.closed_form import FixedPrecision

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
        for name, shape in self._empty_shapes().items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))
        self.register_buffer("penalty", torch.ones((), dtype=torch.float64))

    def _empty_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what is kept of no image."""
        return {
            "rows": (0, self.width),
            "targets": (0, self.num_classes),
            "triangle": (0,),
            "classes": (0, self.num_classes),
        }

    def clear(self) -> None:
        """Forget all images; the penalty stays."""
        for name, shape in self._empty_shapes().items():
            setattr(self, name, self.penalty.new_zeros(shape))
        self.images.zero_()

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

        With R the rows, U'R = h for orthonormal U, one column for each image. Rows whose sums lack
        these images are C'R, with C the orthogonal complement of U.
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
        return None if factor is None else self._weights(self._solved(factor))

    def _solved(self, factor: Tensor) -> Tensor:
        """The penalised system's inverse, by its Cholesky factor, times the targets of the rows,
        (r, K), or the sums of the classes, (M, K).
        """
        return torch.cholesky_solve(self.targets if self.in_rows else self.classes, factor)

    def _weights(self, solved: Tensor) -> Tensor:
        """(M, K) of what _solved() gives.

        With H the rows and T their targets, (H'H + λI)^-1 H'T = H' (HH' + λI)^-1 T.
        """
        return self.rows.T @ solved if self.in_rows else solved

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
        return self._generalised_fit(penalty, system)[0]

    def _generalised_fit(self, penalty: float, system: Tensor) -> tuple[float, Tensor | None]:
        """The generalised_error of λ, and what _solved() gives; None if there is no solution."""
        factor = _factor(system, penalty)
        if factor is None:
            return float("inf"), None
        solved = self._solved(factor)
        trace = float(triangular_inverse(factor).square().sum())  # of the inverse of the system
        if self.in_rows:
            # Here n - df = λ·trace and the error of an image is λ times its dual variable.
            return float(solved.square().sum()) / trace**2, solved
        images = int(self.images)
        fitted = float((solved * self.classes).sum() + penalty * solved.square().sum())
        freedom = images - self.width + penalty * trace
        return (images - fitted) / freedom**2, solved

    def best_by_generalised_error(self) -> tuple[float, Tensor | None]:
        """The candidate λ with the smallest generalised_error, and what solve() gives for it.

        The search goes downhill from the middle of GCV_FACTORS.
        """
        system = self.system()
        unit = float(system.diagonal().sum()) / int(self.images)
        errors: dict[int, float] = {}
        solved: dict[int, Tensor | None] = {}

        def error(step: int) -> float:
            if step not in errors:
                fit = self._generalised_fit(GCV_FACTORS[step] * unit, system)
                errors[step], solved[step] = fit
            return errors[step]

        best, last = len(GCV_FACTORS) // 2, len(GCV_FACTORS) - 1
        while True:
            near = range(max(best - 1, 0), min(best + 1, last) + 1)
            better = min(near, key=lambda step: (error(step), step != best))
            solved = {better: solved[better]}  # the others are not needed again
            if better == best:
                self.at_the_edge = best in (0, last)
                solution = solved[best]
                weights = None if solution is None else self._weights(solution)
                return GCV_FACTORS[best] * unit, weights
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
                setattr(self, name, self.penalty.new_empty(stored.shape))
        self._refuse_other_sizes()

    def _refuse_other_sizes(self) -> None:
        """UserError where a stored state, which may be anybody's, has other sizes than any sums."""
        images, width, classes = len(self.rows), self.width, self.num_classes
        in_rows = {"triangle": (0,), "classes": (0, classes)}
        whole = {"triangle": (width * (width + 1) // 2,), "classes": (width, classes)}
        expected = {"rows": (images, width), "targets": (images, classes)}
        expected |= in_rows if self.in_rows else whole
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise UserError(
                    f"model: its sums make no sense ({name} is {tuple(getattr(self, name).shape)} "
                    f"and not {shape}); get the file from where it was trained"
                )


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
