"""Ridge regression equals one written out over all images at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smope.methods._shared.ridge_head import _held_out
from smope.methods.ridge import Ridge
from tests.tiny import tiny_backbone


def make(seed: int = 0, **options: Any) -> Ridge:
    torch.manual_seed(seed)
    return Ridge(tiny_backbone(), 4, **{"width": 50, **options})


@pytest.mark.parametrize("width", [50, None])
def test_weights_are_those_of_one_fit_to_all_images(stream, learn, all_features, width):
    method = make(width=width)
    learn(method, stream)
    features, labels = all_features(method, stream)
    hidden = (
        features if width is None else (features @ method.classifier.projection.double()).relu()
    )
    penalty = float(method.classifier.sums.penalty)
    system = hidden.T @ hidden + penalty * torch.eye(hidden.shape[1])
    expected = torch.linalg.solve(system, hidden.T @ F.one_hot(labels, 4).double())
    torch.testing.assert_close(method.classifier.weight.double(), expected.T, rtol=1e-4, atol=1e-5)
    logits = hidden @ expected
    torch.testing.assert_close(
        method.classify(features.float()).double(), logits, rtol=1e-3, atol=1e-4
    )


def test_the_penalty_is_the_best_on_a_fifth_of_the_last_task(stream, learn, all_features):
    method = make(exponents=[-3, 6])
    learn(method, stream)
    features, labels = all_features(method, stream)
    hidden, targets = (
        (features @ method.classifier.projection.double()).relu(),
        F.one_hot(labels, 4).double(),
    )
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    first = len(labels) - len(stream.tasks[-1].train)
    for label in stream.tasks[-1].classes:
        places = [place for place in range(first, len(labels)) if labels[place] == label]
        held_out[places[4::5] or places[-1:]] = True
    fitted = hidden[~held_out]
    errors = {}
    for power in range(-3, 7):
        system = fitted.T @ fitted + 10.0**power * torch.eye(50)
        weights = torch.linalg.solve(system, fitted.T @ targets[~held_out])
        errors[10.0**power] = float(
            (hidden[held_out] @ weights - targets[held_out]).square().mean()
        )
    assert float(method.classifier.sums.penalty) == pytest.approx(
        min(errors, key=errors.__getitem__)
    )
    assert 1e-3 < method.classifier.sums.penalty < 1e6, "the grid's ends would say little"


def test_images_held_out():
    labels = torch.tensor([0] * 11 + [1] * 3 + [2])
    assert _held_out(labels).nonzero()[:, 0].tolist() == [4, 9, 13]
    assert not _held_out(torch.arange(5)).any()


def test_without_two_images_of_a_class_the_penalty_stays(learn):
    from tests.tiny import tiny_stream

    method = make()
    trainer = learn(method, tiny_stream())
    before = float(method.classifier.sums.penalty)
    method.end_task(trainer.spans[0], lambda _: iter([(torch.rand(4, 3, 32, 32), torch.arange(4))]))
    assert float(method.classifier.sums.penalty) == before


def test_the_projection_comes_from_the_seed_and_is_saved():
    assert torch.equal(make(3).classifier.projection, make(3).classifier.projection)
    assert not torch.equal(make(3).classifier.projection, make(4).classifier.projection)
    assert "classifier.projection" in make().trained_state()
    assert make(width=None).classifier.projection is None


def test_sums_stay_float64_and_follow_to_a_device():
    method = make().to("cpu", torch.float32)
    assert (
        method.classifier.sums.gram.dtype
        == method.double().classifier.sums.gram.dtype
        == torch.float64
    )
    assert method.float().classifier.sums.gram.dtype == torch.float64
    assert method.to("meta").classifier.sums.gram.device.type == "meta"


def test_a_system_that_rounding_made_singular_is_not_solved():
    method = make(width=None)
    rows = torch.ones(3, 32, dtype=torch.float64)
    method.classifier.sums.add(1e6 * rows, F.one_hot(torch.arange(3), 4).double())
    assert method.classifier.sums.solve(1e-8) is None
    solved = method.classifier.sums.solve(1.0)
    assert solved is not None and math.isfinite(float(solved.sum()))


def test_a_penalty_too_small_to_solve_with_is_raised_until_it_is_not(stream, learn, all_features):
    """Fewer images than random features: the sums are singular, and 1e-12 is nothing beside what
    they hold.
    """
    method = make(width=400, exponents=[-14, -12])
    learn(method, stream)
    power = math.log10(float(method.classifier.sums.penalty))
    assert power > -12 + 1e-6 and power == pytest.approx(round(power))
    assert method.classifier.sums.solve(10.0 ** (power - 1)) is None, "no further than needed"
    expected = method.classifier.sums.solve(10.0**power)
    assert expected is not None
    torch.testing.assert_close(method.classifier.weight.double(), expected.T, rtol=1e-3, atol=1e-5)
    features, labels = all_features(method, stream)
    assert (method.classify(features.float()).argmax(1) == labels).float().mean() > 0.9
