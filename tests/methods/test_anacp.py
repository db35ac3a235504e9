"""AnaCP equals a slow loop written from the paper; where its code differs, both are here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from smope.methods._shared.class_statistics import class_noise
from smope.methods.anacp import AnaCP, spread_targets
from tests.tiny import tiny_backbone


def power(matrix, exponent):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def slow_targets(means, covariance, unwhitening):
    centre = means.mean(0)
    whitened = torch.stack([power(covariance, -0.5) @ (mean - centre) for mean in means])
    left, singular, right = torch.linalg.svd(whitened, full_matrices=False)
    spread = torch.zeros_like(whitened)
    for index, value in enumerate(singular):
        if value > 1e-9 * singular[0]:
            spread += (value + 1) * torch.outer(left[:, index], right[index])
    back = power(covariance, -0.5 if unwhitening == "inverse" else 0.5)
    rows = [back @ row + centre for row in spread]
    return torch.stack([row / row.norm() for row in rows])


def slow_logits(method, features, labels, shown, unwhitening):
    def unit(rows):
        return torch.stack([row / row.norm() for row in rows])

    x, width = unit(features), features.shape[1]
    classes = sorted(set(labels.tolist()))
    means = torch.stack([x[labels == label].mean(0) for label in classes])
    centred = x - means[labels]
    covariance = centred.T @ centred / (len(x) - len(classes)) + 1e-4 * torch.eye(width)
    targets = slow_targets(means, covariance, unwhitening)
    thetas = []
    for random in method.random.double():
        z = F.gelu(x @ random)
        products = sum(torch.outer(z[i], targets[labels[i]]) for i in range(len(x)))
        thetas.append(torch.linalg.solve(z.T @ z + 100 * torch.eye(z.shape[1]), products))

    def read(rows):
        outputs = [
            unit(F.gelu(rows @ random) @ theta)
            for random, theta in zip(method.random.double(), thetas, strict=True)
        ]
        return F.gelu(sum(outputs) / len(outputs) @ method.readout.double())

    noise = class_noise(torch.tensor(classes), 5, width)
    root = torch.linalg.cholesky(covariance)
    samples = torch.cat([mean + drawn @ root.T for mean, drawn in zip(means, noise, strict=True)])
    hidden, one_hot = read(samples), torch.eye(len(classes)).double().repeat_interleave(5, 0)
    system = hidden.T @ hidden + 100 * torch.eye(hidden.shape[1])
    return read(unit(shown)) @ torch.linalg.solve(system, hidden.T @ one_hot)


@pytest.mark.parametrize("unwhitening", ["inverse", "root"])
def test_logits_equal_the_slow_loop(stream, learn, all_features, unwhitening):
    torch.manual_seed(0)
    method = AnaCP(
        tiny_backbone(), 4, width=30, projections=2, samples_per_class=5, unwhitening=unwhitening
    )
    learn(method, stream)
    features, labels = all_features(method, stream)
    expected = slow_logits(method, features, labels, features[:6], unwhitening) / 0.1
    found = method.double().classify(features[:6])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_targets_lie_further_apart_than_means():
    draw = torch.Generator().manual_seed(0)
    means = F.normalize(1 + 0.1 * torch.randn(6, 20, generator=draw, dtype=torch.float64), dim=1)
    covariance = 1e-3 * torch.eye(20, dtype=torch.float64)
    for unwhitening in ("inverse", "root"):
        targets = spread_targets(means, covariance, unwhitening)
        assert (torch.pdist(targets) > torch.pdist(means)).all()
        torch.testing.assert_close(targets.norm(dim=1), torch.ones(6).double())


def test_one_class_is_its_own_target():
    means = F.normalize(torch.randn(1, 5, dtype=torch.float64), dim=1)
    targets = spread_targets(means, torch.eye(5, dtype=torch.float64), "inverse")
    torch.testing.assert_close(targets, means)
