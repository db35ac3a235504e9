"""KLDA's ranking equals a slow loop of Mahalanobis distances written from the paper."""

from __future__ import annotations

import math

import pytest
import torch

from smope.methods.klda import KernelLDA
from tests.tiny import tiny_backbone


def make(**options):
    torch.manual_seed(0)
    return KernelLDA(tiny_backbone(), 4, **{"width": 40, "gamma": 0.01, **options})


def test_distances_are_those_of_a_slow_loop(stream, learn, all_features):
    method = make(regularisation=0.05)
    learn(method, stream)
    features, labels = all_features(method, stream)
    frequencies, shifts = method.frequencies.double(), method.shifts.double()

    def feature(x):
        return math.sqrt(2 / 40) * torch.stack(
            [torch.cos(x @ frequencies[:, j] + shifts[j]) for j in range(40)]
        )

    mapped = torch.stack([feature(x) for x in features])
    means = torch.stack([mapped[labels == label].mean(0) for label in range(4)])
    scatter = sum(torch.outer(row, row) for row in mapped - means[labels])
    inverse = torch.linalg.inv(scatter + 0.05 * torch.eye(40, dtype=torch.float64))
    distances = torch.stack(
        [torch.stack([(z - m) @ inverse @ (z - m) for m in means]) for z in mapped]
    )
    logits = method.double().classify(features)
    # twice a logit is minus the distance, up to the scale and a number that all classes share
    scale = len(labels) - 4
    expected = -distances * scale
    torch.testing.assert_close(
        2 * (logits - logits[:, :1]), expected - expected[:, :1], rtol=1e-4, atol=1e-4
    )


def test_the_features_approximate_the_kernel():
    method = make(width=2000)
    x, y = torch.randn(2, 5, 32, dtype=torch.float64)
    exact = torch.exp(-0.01 * torch.cdist(x, y).square())
    torch.testing.assert_close(method.mapped(x) @ method.mapped(y).T, exact, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", ["frequencies", "shifts"])
def test_the_draw_comes_from_the_seed_and_is_saved(name):
    assert torch.equal(getattr(make(), name), getattr(make(), name))
    assert name in make().trained_state()
