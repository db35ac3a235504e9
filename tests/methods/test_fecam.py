"""FeCAM's distances equal a slow loop written from the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smope.methods.fecam import FeCAM
from tests.tiny import tiny_backbone


def slow(features: Tensor, labels: Tensor, shown: Tensor, options: dict[str, Any]) -> Tensor:
    """Squared distances (n, classes) of `shown` features to the classes of the others."""

    def normal(x: Tensor) -> numpy.ndarray:
        power = options.get("tukey") or 1
        return F.normalize(x.sign() * x.abs() ** power, dim=1).numpy()

    train, test = normal(features), normal(shown)
    means = [train[labels.numpy() == label].mean(0) for label in range(4)]
    columns = []
    for label, mean in enumerate(means):
        if options.get("covariance") == "shared":
            centred = train - numpy.stack(means)[labels.numpy()]
            covariance = centred.T @ centred / (len(train) - 4)
        else:
            covariance = numpy.cov(train[labels.numpy() == label].T)
        width = len(covariance)
        identity = numpy.eye(width)
        variance = numpy.diagonal(covariance).mean()
        other = covariance[identity == 0].mean()
        covariance = covariance + options.get("diagonal", 1.0) * variance * identity
        covariance = covariance + options.get("off_diagonal", 0.0) * other * (1 - identity)
        deviation = numpy.sqrt(numpy.diagonal(covariance))
        inverse = numpy.linalg.pinv(covariance / numpy.outer(deviation, deviation))
        columns.append([float((row - mean) @ inverse @ (row - mean)) for row in test])
    return torch.tensor(columns, dtype=torch.float64).T


@pytest.mark.parametrize(
    "options",
    [{}, {"covariance": "shared"}, {"diagonal": 10.0, "off_diagonal": 10.0}, {"tukey": 0.5}],
    ids=["default", "shared", "as for ImageNet-R", "tukey"],
)
def test_distances_equal_the_slow_loop(stream, learn, all_features, options):
    method = FeCAM(tiny_backbone(), 4, **options)
    learn(method, stream)
    features, labels = all_features(method, stream)
    expected = slow(features, labels, features[:6], options)
    found = -method.double().classify(features[:6]).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_what_follows_from_the_moments_follows_them_when_they_are_loaded(stream, learn):
    method, other = FeCAM(tiny_backbone(), 4), FeCAM(tiny_backbone(), 4)
    learn(method, stream)
    features = torch.randn(5, 32)
    before = other.classify(features)
    assert "whitening" not in method.state_dict() and other.whitening is not None
    other.load_trained_state(method.trained_state())
    assert not torch.equal(other.classify(features), before)
    assert torch.equal(other.classify(features), method.classify(features))


def test_classes_of_one_image_are_told_apart_by_plain_distance():
    method = FeCAM(tiny_backbone(), 4)
    features = torch.randn(4, 32, dtype=torch.float64)
    method.moments.add(F.normalize(features, dim=1), torch.arange(4))
    method.classifier.weight.data.copy_(method.moments.means)
    distances = torch.cdist(F.normalize(features, dim=1), F.normalize(features, dim=1)).square()
    torch.testing.assert_close(
        -method.classify(features.float()).double(), distances, rtol=1e-4, atol=1e-5
    )


def test_the_matrices_of_distances_are_in_memory_once(tmp_path: Path):
    method = FeCAM(tiny_backbone(), 100)
    labels = torch.arange(100).repeat_interleave(4)[:200]  # half of the classes are not seen yet
    method.moments.add(torch.randn(200, 32, dtype=torch.float64), labels)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        found = method._find_whitening()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    memory = sorted(
        (event["ts"], event["args"]) for event in events if event.get("name") == "[memory]"
    )
    totals = [arguments["Total Allocated"] for _, arguments in memory]
    started = totals[0] - memory[0][1]["Bytes"]
    assert 1.0 <= (max(totals) - started) / found.nbytes < 1.5
    assert torch.equal(found[50:], torch.eye(32).expand(50, 32, 32)) and not torch.equal(
        found[49], found[50]
    )
