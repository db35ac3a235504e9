"""AnaCP: features are moved towards targets that lie apart, in closed form, before they are
classified (Momeni et al. 2025, NeurIPS, arXiv 2511.13880).

After the paper and its public code, on frozen features: the code adapts the backbone to the first
task before that, which is left out here.

Letters: K classes, C features, M random features, H projections, n images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, Positive
from smope.methods._shared.class_statistics import class_noise
from smope.methods._shared.closed_form import CLASS_MEANS, ClassMoments, OnePass, features_of
from smope.methods._shared.ridge_sums import Sums
from smope.methods.base import Batches, Recollection, Reference, TaskSpan

FLOOR = 1e-4  # added to the variances of normalised features, as in the authors' code
TEMPERATURE = 0.1  # divides logits; twice that of images, since samples are separated better
CHUNK_SAMPLES = 1024  # samples whose random features are in memory at once

Unwhitening = Literal["inverse", "root"]


class AnaCP(OnePass):
    """Ridge regression to class targets, and ridge regression from there to classes.

    Let x be a feature of length 1, m the class means of x, and S their shared covariance + 1e-4 I.

        targets      t = `spread_targets(m, S)`, (K, C)
        projections  θ = (Z'Z + λ I)^-1 Z't for each of H draws of z = gelu(x·R), where an image's
                     row of t is that of its class; x moves to p, the mean over draws of z·θ / |z·θ|
        classes      one-hot labels by ridge regression from gelu(p·Q), fitted to samples of the
                     Gaussians N(m, S) of all classes

    R and Q (C, M) are drawn from N(0, 1) once. θ is W·t with W the ridge weights of one-hot labels,
    so that the sums of ridge_sums.Sums are all that has to be kept: memory is H·M²/2 numbers in
    float64 (0.3 GB for M = 5000, H = 3) and (H·M + K)·C besides.

    Args:
        width: M.
        projections: H.
        ridge_penalty: λ of both regressions.
        samples_per_class: of each Gaussian; they are the same at every task.
        unwhitening: see spread_targets.
    """

    reference = Reference(
        "Momeni et al. 2025, arXiv 2511.13880 (AnaCP), and the authors' code",
        "one pass over frozen features, nothing is trained; without the first session of the code",
    )
    learning_only = ("moments", "sums")
    random: Tensor
    readout: Tensor
    theta: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        width: Annotated[int, AtLeast(1)] = 5000,
        projections: Annotated[int, AtLeast(1)] = 3,
        ridge_penalty: Annotated[float, Positive()] = 100.0,
        samples_per_class: Annotated[int, AtLeast(1)] = 100,
        unwhitening: Unwhitening = "inverse",
    ) -> None:
        super().__init__(backbone, num_classes)
        self.ridge_penalty = ridge_penalty
        self.samples_per_class = samples_per_class
        self.unwhitening: Unwhitening = unwhitening
        features = backbone.embed_dim
        self.register_buffer("random", torch.randn(projections, features, width))
        self.register_buffer("readout", torch.randn(features, width))
        self.register_buffer("theta", torch.zeros(projections, width, features))
        self.classifier = nn.Linear(width, num_classes, bias=False).requires_grad_(False)
        self.moments = ClassMoments(num_classes, features, "shared")
        self.sums = nn.ModuleList(Sums(width, num_classes) for _ in range(projections))

    def classify(self, features: Tensor) -> Tensor:
        read = self._read(self._moved(F.normalize(features, dim=-1)))
        return self.classifier(read) / TEMPERATURE

    def _moved(self, x: Tensor) -> Tensor:
        """x (n, C) -> p (n, C)."""
        outputs = F.gelu(x @ self.random.to(x)) @ self.theta.to(x)  # (H, n, C)
        return F.normalize(outputs, dim=-1).mean(0)

    def _read(self, moved: Tensor) -> Tensor:
        """p (n, C) -> what the classifier sees, (n, M)."""
        return F.gelu(moved @ self.readout.to(moved))

    @torch.no_grad()
    def recollect(self, count: int) -> Recollection | None:
        labels = self.moments.counts.nonzero()[:, 0]
        if not len(labels):
            return None
        logits = self.classify(self.moments.means[labels].to(self.classifier.weight))
        return Recollection(logits, labels.to(logits.device), CLASS_MEANS)

    @torch.no_grad()
    def class_cosines(self, features: Tensor) -> Tensor | None:
        """Of features of length 1, as the moments are."""
        return self.moments.class_cosines(F.normalize(features, dim=-1))

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        for features, labels in features_of(self, batches, self.moments.means.device):
            x = F.normalize(features, dim=-1)
            self.moments.add(x, labels)
            one_hot = F.one_hot(labels, self.num_classes).double()
            for sums, hidden in self._hidden(x):
                sums.add(hidden, one_hot)
        self._solve()

    @property
    def shares_sums(self) -> bool:
        return True

    @torch.no_grad()
    def withdraw(self, label: int, features: Tensor | None) -> None:
        x = None if features is None else F.normalize(features, dim=-1)
        self.moments.withdraw(label, x)
        if x is not None:
            for sums, hidden in self._hidden(x.to(self.moments.means)):
                sums.remove(hidden, label)
            self._solve()

    def _hidden(self, x: Tensor) -> Iterator[tuple[Sums, Tensor]]:
        """The sums of each projection, and its z (n, M)."""
        for sums, random in zip(self.sums, self.random, strict=True):
            assert isinstance(sums, Sums)
            yield sums, F.gelu(x @ random.to(x))

    def _solve(self) -> None:
        """Both regressions, from the present moments and sums."""
        moments = self.moments
        labels = moments.counts.nonzero()[:, 0]
        covariance = moments.covariance(0)
        covariance.diagonal().add_(FLOOR)
        targets = torch.zeros_like(moments.means)
        targets[labels] = spread_targets(moments.means[labels], covariance, self.unwhitening)
        for theta, sums in zip(self.theta, self.sums, strict=True):
            assert isinstance(sums, Sums)
            theta.copy_(self._ridge(sums) @ targets)
        samples = Sums(len(self.readout.T), self.num_classes).to(covariance.device)
        noise = class_noise(labels, self.samples_per_class, len(covariance)).to(covariance)
        drawn = moments.means[labels].unsqueeze(1) + noise @ torch.linalg.cholesky(covariance).T
        drawn_labels = labels.repeat_interleave(self.samples_per_class)
        chunks = drawn.flatten(0, 1).split(CHUNK_SAMPLES), drawn_labels.split(CHUNK_SAMPLES)
        for chunk, chunk_labels in zip(*chunks, strict=True):
            one_hot = F.one_hot(chunk_labels, self.num_classes).double()
            samples.add(self._read(self._moved(chunk)), one_hot)
        self.classifier.weight.copy_(self._ridge(samples).T)

    def _ridge(self, sums: Sums) -> Tensor:
        """Ridge weights of one-hot labels, (M, K)."""
        weights = sums.solve(self.ridge_penalty, sums.system())
        assert weights is not None, "the penalty is far above rounding errors"
        return weights


def spread_targets(means: Tensor, covariance: Tensor, unwhitening: Unwhitening) -> Tensor:
    """Class targets that lie further apart than class means, in the directions of these.

    Means are centred and whitened by S^(-1/2); 1 is added to their singular values; they are
    brought back, the centre is added, and each is divided by its length. A singular value of 0
    stays 0, since its direction is arbitrary.

    Args:
        means: m, (K, C).
        covariance: S, (C, C), positive definite.
        unwhitening: how they are brought back: "root" by S^(1/2), as in the paper (equation 16),
            "inverse" by S^(-1/2) once more, as in the public code.

    Returns:
        t, (K, C).
    """
    values, vectors = torch.linalg.eigh(covariance)
    inverse = vectors * values.rsqrt() @ vectors.T
    centre = means.mean(0)
    left, singular, right = torch.linalg.svd((means - centre) @ inverse, full_matrices=False)
    tolerance = 1e-9 * singular.max()
    spread = (left * torch.where(singular > tolerance, singular + 1, 0.0)) @ right
    back = inverse if unwhitening == "inverse" else vectors * values.sqrt() @ vectors.T
    return F.normalize(spread @ back + centre, dim=-1)
