"""Streaming LDA equals linear discriminant analysis written out over all images at once."""

from __future__ import annotations

import pytest
import torch

from smope.methods._shared.closed_form import ClassMoments
from smope.methods.slda import StreamingLDA
from tests.tiny import tiny_backbone


def test_the_classifier_is_that_of_all_images_at_once(stream, learn, all_features):
    method = StreamingLDA(tiny_backbone(), 4, shrinkage=0.01)
    learn(method, stream)
    features, labels = all_features(method, stream)
    means = torch.stack([features[labels == label].mean(0) for label in range(4)])
    centred = features - means[labels]
    covariance = centred.T @ centred / (len(labels) - 4)
    precision = torch.linalg.inv(0.99 * covariance + 0.01 * torch.eye(features.shape[1]))
    scores = torch.stack(
        [features @ precision @ mean - mean @ precision @ mean / 2 for mean in means], dim=1
    )
    found = method.double().classify(features)
    torch.testing.assert_close(found, scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_moments_do_not_depend_on_how_images_come(covariance):
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=draw, dtype=torch.float64) + 3
    labels = torch.randint(0, 3, (40,), generator=draw)
    at_once, in_parts = ClassMoments(3, 6, covariance), ClassMoments(3, 6, covariance)
    at_once.add(features, labels)
    for part in torch.randperm(40, generator=draw).split(7):
        in_parts.add(features[part], labels[part])
    assert torch.equal(at_once.counts, in_parts.counts)
    torch.testing.assert_close(at_once.means, in_parts.means)
    for group in range(len(at_once.scatter)):
        torch.testing.assert_close(at_once.covariance(group), in_parts.covariance(group))
        if covariance == "class":
            torch.testing.assert_close(at_once.covariance(group), features[labels == group].T.cov())


def test_a_single_image_has_no_covariance():
    moments = ClassMoments(3, 4, "class")
    moments.add(torch.ones(1, 4, dtype=torch.float64), torch.tensor([1]))
    assert moments.counts.tolist() == [0, 1, 0]
    assert not any(moments.covariance(group).any() for group in range(3))
