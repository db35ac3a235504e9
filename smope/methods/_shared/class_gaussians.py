"""Class statistics with full covariances: one Gaussian for each class.

Letters: K classes, C features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smope.methods._shared.class_statistics import ClassStatistics

FLOOR = 1e-3  # added to every variance when drawing, as in the code of SSIAT, RSIAT and SLDC


class ClassGaussians(ClassStatistics):
    """One Gaussian for each class, with its covariance, from which features can be drawn.

    Buffers: mean (K, 1, C), variance (K, 1, C, C), which is the covariance of all images of a
    class and divides by their number, count (K, 1), and task (K,), the number of the task in which
    a class came last. Memory is K·C² numbers: 0.24 GB in float32 for 100 classes and ViT-B/16.
    Where nothing is recorded, 0 stands for 1 in these shapes.

    When features are drawn, the mean of a class is multiplied by 1 - shrink + shrink·(t + 1)/T for
    its task t of T so far: SLCA, SSIAT and RSIAT draw older classes closer to the origin.

    Args:
        num_classes: K.
        width: C.
        shrink: 0.1 in the code of these methods; 0: the means as they are.
        recorded: whether classes will be recorded.
    """

    task: Tensor

    def __init__(
        self, num_classes: int, width: int, shrink: float = 0.0, *, recorded: bool = True
    ) -> None:
        super().__init__(num_classes, int(recorded), width)
        self.shrink = shrink
        self.register_buffer("variance", torch.zeros(num_classes, int(recorded), width, width))
        self.register_buffer("task", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def record(self, label: int, features: Tensor, *, seed: int = 0) -> None:
        """Describe a class by its features; one that comes again by all its images.

        Args:
            label: the class.
            features: (n, C), n >= 1; sums are as precise as these are.
            seed: without effect, as there is one Gaussian.
        """
        earlier = int(self.count[label, 0])
        mean = features.mean(0)
        centred = features - mean
        share = len(features) / (len(features) + earlier)
        shift = mean - self.mean[label, 0].to(mean)
        covariance = (1 - share) * (
            self.variance[label, 0].to(mean) + share * torch.outer(shift, shift)
        )
        covariance += share * (centred.T @ centred) / len(features)
        self.mean[label, 0] = self.mean[label, 0].to(mean) + share * shift
        self.variance[label, 0] = covariance
        self.count[label, 0] += len(features)

    def gaussians(self) -> tuple[Tensor, Tensor, Tensor]:
        """label (n,), mean (n, C), and root (n, C, C), with root·rootᵀ the covariance + 1e-3 · I,
        of each known class.
        """
        labels = self.known.any(-1).nonzero()[:, 0]
        roots = torch.empty_like(self.variance[labels].flatten(0, 1))
        for row, label in zip(roots, labels.tolist(), strict=True):  # one in float64 at a time
            row.copy_(self.root(label))
        age = (self.task[labels] + 1) / (self.task.max() + 1)
        factor = 1 - self.shrink + self.shrink * age
        return labels, self.mean[labels].flatten(0, 1) * factor.unsqueeze(1).to(roots), roots

    def root(self, label: int) -> Tensor:
        """A matrix R with R·Rᵀ a class's covariance + 1e-3 · I, (C, C) in float64.

        R is the lower triangular root. Rounding in float32 can leave a large covariance of few
        images without one: then the eigenvalues below 1e-3 are raised to it.
        """
        covariance = in_float64(self.variance[label, 0])
        covariance = covariance + FLOOR * torch.eye(len(covariance)).to(covariance)
        root, fails = torch.linalg.cholesky_ex(covariance)
        if fails:
            values, vectors = torch.linalg.eigh(covariance)
            root = vectors * values.clamp(min=FLOOR).sqrt()
        return root

    @torch.no_grad()
    def carry(self, move: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        """Move the Gaussians of all known classes.

        Args:
            move: (label, mean (C,), covariance (C, C)) in float64 -> the new mean and covariance.
        """
        for label in self.known[:, 0].nonzero()[:, 0].tolist():
            old = in_float64(self.mean[label, 0]), in_float64(self.variance[label, 0])
            mean, covariance = move(label, *old)
            self.mean[label, 0], self.variance[label, 0] = mean, covariance


def in_float64(values: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()
