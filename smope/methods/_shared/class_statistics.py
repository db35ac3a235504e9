"""Class statistics: mean and diagonal variance of each class's features.

Methods with classifier alignment keep them instead of images.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-4  # added to every variance when sampling, as in the authors' code


class ClassStatistics(nn.Module):
    """One or more diagonal Gaussians for each class, from which features can be drawn.

    Buffers, for M centroids and C features: mean and variance (num_classes, M, C), and count
    (num_classes, M), the number of images behind each Gaussian.

    Args:
        num_classes: classes of the stream.
        centroids: M; 0 remembers nothing.
        width: C.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, num_classes: int, centroids: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes, centroids, width))
        self.register_buffer("variance", torch.zeros(num_classes, centroids, width))
        self.register_buffer("count", torch.zeros(num_classes, centroids, dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_without_unused_room)

    @property
    def known(self) -> Tensor:
        """Which Gaussians exist, (num_classes, M) bool."""
        return self.count > 0

    @torch.no_grad()
    def record(self, label: int, features: Tensor, *, seed: int) -> None:
        """Describe a class by its features; the variance divides by n.

        If a class with a single Gaussian comes again, its Gaussian becomes that of all its images.
        With several centroids, k-means (scikit-learn, seeded) splits the features. A centroid of a
        single image has no variance and is left out. If no centroid remains, the class gets one
        Gaussian.

        Args:
            label: the class.
            features: (n, C), n >= 1.
            seed: of k-means.
        """
        assignment = _assign(features, self.mean.shape[1], seed)
        groups = [features[assignment == index] for index in range(self.mean.shape[1])]
        varied = [group for group in groups if len(group) and group.var(dim=0, correction=0).any()]
        earlier = self.count[label].clone()
        assert len(earlier) == 1 or not earlier.any(), (
            "several Gaussians a class cannot be continued"
        )
        self.count[label] = 0
        for index, group in enumerate(varied or [features]):
            mean, variance = group.mean(dim=0), group.var(dim=0, correction=0)
            share = len(group) / (len(group) + int(earlier[index]))
            shift = mean - self.mean[label, index]
            variance = share * variance + (1 - share) * (
                self.variance[label, index] + share * shift.square()
            )
            self.mean[label, index] += share * shift
            self.variance[label, index] = variance
            self.count[label, index] = len(group) + earlier[index]

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw features as mean + sqrt(variance + 1e-4) · noise.

        Args:
            count: features of each Gaussian.
            generator: on the CPU, so that the numbers are the same on every device.

        Returns:
            Features (n, C) and labels (n,), grouped by class.
        """
        labels, mean, deviation = self.gaussians()
        noise = torch.randn(len(labels), count, mean.shape[-1], generator=generator).to(mean)
        features = drawn(mean, deviation, noise)
        return features.flatten(0, 1), labels.repeat_interleave(count)

    def gaussians(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `sample` draws from: label (n,), mean (n, C) and deviation of each known centroid.
        The deviation is the standard one (n, C); see `drawn` for others.
        """
        labels, index = self.known.nonzero(as_tuple=True)
        return (
            labels,
            self.mean[labels, index],
            (self.variance[labels, index] + VARIANCE_FLOOR).sqrt(),
        )


def _without_unused_room(
    statistics: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Reads a state that has room for Gaussians which were never recorded, as earlier runs of TUNA
    and SLCA with align=false wrote it.
    """
    assert isinstance(statistics, ClassStatistics)
    names = [f"{prefix}{name}" for name in ("mean", "variance", "count")]
    if statistics.count.numel() or names[-1] not in state or state[names[-1]].any():
        return
    for name in names:
        state[name] = state[name][:, :0]


def drawn(mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    """Features from normal numbers.

    Args:
        mean: of each Gaussian, (n, C).
        deviation: standard deviation of each channel, (n, C); or (n, C, C), R with R·Rᵀ the
            covariance.
        noise: standard normal, (n, count, C).

    Returns:
        (n, count, C).
    """
    full = deviation.ndim == 3
    spread = noise @ deviation.mT if full else deviation.unsqueeze(1) * noise
    return mean.unsqueeze(1) + spread


def class_noise(labels: Tensor, count: int, width: int) -> Tensor:
    """Standard normal numbers that depend on a label and not on which other labels there are.

    Args:
        labels: (n,).
        count: rows of each label.
        width: C.

    Returns:
        (n, count, C) in float64, on the CPU.
    """
    noise = torch.empty(len(labels), count, width, dtype=torch.float64)
    for row, label in zip(noise, labels.tolist(), strict=True):
        row.normal_(generator=torch.Generator().manual_seed(label))
    return noise


def mean_cosines(
    features: Tensor, labels: Tensor, means: Tensor, num_classes: int
) -> Tensor | None:
    """How near images are to classes: the cosine of feature and mean feature.

    Args:
        features: (B, C), of images.
        labels: (n,), the class of each mean.
        means: (n, C); of a class with several means the nearest counts.
        num_classes: K.

    Returns:
        (B, K), minus infinity for a class without a mean; None where there are no means.
    """
    if not len(labels):
        return None
    cosines = F.normalize(features.to(means), dim=-1) @ F.normalize(means, dim=-1).T
    nearest = cosines.new_full((len(features), num_classes), -torch.inf)
    return nearest.scatter_reduce(1, labels.expand_as(cosines), cosines, "amax")


def _assign(features: Tensor, centroids: int, seed: int) -> Tensor:
    if centroids == 1:
        return torch.zeros(len(features), dtype=torch.int64, device=features.device)
    from sklearn.cluster import KMeans

    kmeans = KMeans(min(centroids, len(features)), n_init="auto", random_state=seed)
    return torch.from_numpy(kmeans.fit_predict(features.cpu().double().numpy())).to(
        features.device, torch.int64
    )
