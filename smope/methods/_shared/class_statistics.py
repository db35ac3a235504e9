"""What is remembered of each class's features: a mean and a diagonal variance for one or more
centroids.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-4  # added to every variance when sampling, as in the authors' program


class ClassStatistics(nn.Module):
    """A diagonal Gaussian (or several) a class, from which features can be drawn.

    Buffers mean, variance (num_classes, M, C) and count (num_classes, M), the images behind each,
    for M centroids and C features.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, num_classes: int, centroids: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes, centroids, width))
        self.register_buffer("variance", torch.zeros(num_classes, centroids, width))
        self.register_buffer("count", torch.zeros(num_classes, centroids, dtype=torch.int64))

    @property
    def known(self) -> Tensor:
        """(num_classes, M) bool: which Gaussians there are."""
        return self.count > 0

    @torch.no_grad()
    def record(self, label: int, features: Tensor, *, seed: int) -> None:
        """Describe class `label` by its features (n, C), n >= 1; the variance divides by n.

        A single Gaussian that is there already becomes that of all images, earlier ones and these.

        With several centroids the features are split by k-means (scikit-learn, seeded); a centroid
        of a single image, which has no variance, is left out. A class for which none remains gets
        one Gaussian.
        """
        assignment = _assign(features, self.mean.shape[1], seed)
        groups = [features[assignment == index] for index in range(self.mean.shape[1])]
        spread = [group for group in groups if len(group) and group.var(dim=0, correction=0).any()]
        earlier = self.count[label].clone()
        assert len(earlier) == 1 or not earlier.any(), (
            "several Gaussians a class cannot be continued"
        )
        self.count[label] = 0
        for index, group in enumerate(spread or [features]):
            mean, variance = group.mean(dim=0), group.var(dim=0, correction=0)
            share = len(group) / (len(group) + int(earlier[index]))
            apart = mean - self.mean[label, index]
            variance = share * variance + (1 - share) * (
                self.variance[label, index] + share * apart.square()
            )
            self.mean[label, index] += share * apart
            self.variance[label, index] = variance
            self.count[label, index] = len(group) + earlier[index]

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` features of each known centroid: (n, C) and labels (n,), grouped by class.

        Drawn as mean + sqrt(variance + 1e-4) · noise: a diagonal Gaussian needs no factorisation.
        `generator` is a CPU one, so that the numbers are the same on every device.
        """
        labels, mean, deviation = self.gaussians()
        noise = torch.randn(len(labels), count, mean.shape[-1], generator=generator).to(mean)
        features = mean.unsqueeze(1) + deviation.unsqueeze(1) * noise
        return features.flatten(0, 1), labels.repeat_interleave(count)

    def gaussians(self) -> tuple[Tensor, Tensor, Tensor]:
        """What `sample` draws from: label (n,), mean and standard deviation (n, C) of each known
        centroid.
        """
        labels, index = self.known.nonzero(as_tuple=True)
        return (
            labels,
            self.mean[labels, index],
            (self.variance[labels, index] + VARIANCE_FLOOR).sqrt(),
        )


def _assign(features: Tensor, centroids: int, seed: int) -> Tensor:
    if centroids == 1:
        return torch.zeros(len(features), dtype=torch.int64, device=features.device)
    from sklearn.cluster import KMeans

    kmeans = KMeans(min(centroids, len(features)), n_init="auto", random_state=seed)
    return torch.from_numpy(kmeans.fit_predict(features.cpu().double().numpy())).to(
        features.device, torch.int64
    )
