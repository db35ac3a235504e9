"""Probabilities of methods in closed form: what the softmax of their logits is worth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from smope.methods._shared.ridge_head import RidgeHead
from smope.methods.ncm import NearestClassMean
from tests.tiny import tiny_backbone

DIRECTIONS, TRAIN, TEST = 64, 40, 50  # features; images a class


def nearest_mean(train, labels, classes):
    method = NearestClassMean(tiny_backbone(), classes)
    means = torch.stack([train[labels == label].mean(0) for label in range(classes)])
    method.classifier = torch.nn.Linear(DIRECTIONS, classes, bias=False)
    method.classifier.weight.data = F.normalize(means, dim=-1)
    return method.classify


def ridge(train, labels, classes):
    head = RidgeHead(DIRECTIONS, classes, 1000, (-2, 8), "gcv")
    head.fit([(train.double(), labels)])
    return head


@pytest.mark.parametrize("classifier", [ridge, nearest_mean])
@pytest.mark.parametrize(("classes", "spread"), [(3, 2.0), (10, 2.0), (50, 1.5)])
def test_a_probability_is_near_the_accuracy_on_new_images(classifier, classes, spread):
    torch.manual_seed(0)
    means = torch.randn(classes, DIRECTIONS)

    def drawn(images: int):
        labels = torch.arange(classes).repeat(images)
        features = means[labels] + spread * torch.randn(len(labels), DIRECTIONS)
        return 8 * F.normalize(features, dim=-1), labels

    classify = classifier(*drawn(TRAIN), classes)
    features, labels = drawn(TEST)
    confidence, predicted = classify(features).softmax(-1).max(-1)
    accuracy = (predicted == labels).float().mean()
    assert accuracy > 0.9
    assert float(confidence.mean()) == pytest.approx(float(accuracy), abs=0.05)
