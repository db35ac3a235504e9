"""RGDA's logits are log densities of Gaussians, computed by torch.distributions one by one."""

from __future__ import annotations

import math

import torch
from torch.distributions import MultivariateNormal

from smope.methods.rgda import RegularisedGDA
from tests.tiny import tiny_backbone


def test_logits_are_log_densities(stream, learn, all_features):
    method = RegularisedGDA(tiny_backbone(), 4, own=0.3, average=0.2, identity=0.1)
    learn(method, stream)
    features, labels = all_features(method, stream)
    own = [features[labels == label].T.cov() for label in range(4)]
    average = sum(own) / 4
    columns = []
    for label in range(4):
        covariance = 0.3 * own[label] + 0.2 * average + 0.1 * torch.eye(32)
        density = MultivariateNormal(features[labels == label].mean(0), covariance)
        columns.append(torch.stack([density.log_prob(x) for x in features[:6]]))
    expected = torch.stack(columns, 1) + 16 * math.log(2 * math.pi)
    found = method.double().classify(features[:6])
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_a_class_of_one_image_has_the_mean_covariance():
    method = RegularisedGDA(tiny_backbone(), 4)
    method.moments.add(torch.randn(20, 32, dtype=torch.float64), torch.arange(20) % 2)
    method.moments.add(torch.randn(1, 32, dtype=torch.float64), torch.tensor([2]))
    average = (method.moments.covariance(0) + method.moments.covariance(1)) / 3
    whitening = method._find_whitening().double()
    measured = torch.linalg.inv(whitening[2].T @ whitening[2])
    torch.testing.assert_close(measured, 0.2 * average + 0.2 * torch.eye(32), rtol=1e-3, atol=1e-4)
    assert torch.equal(whitening[3], torch.eye(32).double())
