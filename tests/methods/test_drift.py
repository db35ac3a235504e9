"""Drift correction equals slow loops written from the papers; Gaussians are carried and drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from smope.methods._shared.class_gaussians import ClassGaussians
from smope.methods._shared.class_statistics import drawn
from smope.methods._shared.drift import (
    carried_by_samples,
    fit_weakly_nonlinear,
    linear_map,
    moved,
    semantic_shift,
)
from smope.methods._shared.earlier_self import EarlierSelf


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_semantic_shift_equals_a_loop() -> None:
    before, after, means = draw(7, 5), draw(7, 5, seed=1), draw(3, 5, seed=2)
    shifts = semantic_shift(before, after, means, width=1.5)
    for shift, mean in zip(shifts, means, strict=True):
        total, weights = torch.zeros(5, dtype=torch.float64), 0.0
        for old, new in zip(before, after, strict=True):
            weight = math.exp(-float(((old - mean) ** 2).sum()) / (2 * 1.5**2)) + 1e-5
            total += weight * (new - old)
            weights += weight
        torch.testing.assert_close(shift, total / weights, rtol=1e-10, atol=1e-12)


def test_far_from_all_images_a_mean_moves_as_they_do_on_average() -> None:
    before, after = draw(20, 4), draw(20, 4, seed=1)
    shift = semantic_shift(before, after, torch.full((1, 4), 1e3).double(), width=1.0)
    torch.testing.assert_close(shift[0], (after - before).mean(0))


def test_linear_map_equals_a_loop() -> None:
    before, after = draw(9, 4), draw(9, 4, seed=1)
    gram, cross = 0.3 * torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    for old, new in zip(before, after, strict=True):
        x, y = old / old.norm(), new / new.norm()
        gram += torch.outer(x, x)
        cross += torch.outer(x, y)
    stay = math.exp(-9 / (2.0 * 4))
    expected = (1 - stay) * gram.inverse() @ cross + stay * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(linear_map(before, after, penalty=0.3, patience=2.0), expected)


def test_with_many_images_the_linear_map_finds_a_rotation() -> None:
    rotation = torch.linalg.qr(draw(6, 6))[0]
    before = draw(2000, 6, seed=1)
    fitted = linear_map(before, before @ rotation, penalty=1e-6, patience=1.0)
    torch.testing.assert_close(fitted, rotation, atol=1e-6, rtol=0)


def test_weakly_nonlinear_map_follows_what_no_matrix_does() -> None:
    """Directions that fold: a matrix leaves more than 1.5 times the error of the map."""
    before = draw(400, 8)
    bent = before.abs() + 0.5 * before
    after = bent / bent.norm(dim=1, keepdim=True) * before.norm(dim=1, keepdim=True)
    matrix = linear_map(before, after, penalty=1e-4, patience=0.01)
    fitted = fit_weakly_nonlinear(before, after, penalty=0.0, steps=1500, seed=0)
    assert 1.5 * (fitted(before) - after).norm() < (before @ matrix - after).norm()
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


def test_the_penalty_keeps_the_map_linear() -> None:
    before, after = draw(64, 4), draw(64, 4, seed=1)
    free, held = (
        fit_weakly_nonlinear(before, after, penalty=penalty, steps=300, seed=0)
        for penalty in (0.0, 10.0)
    )
    assert held.nonlinearity() < 0.5 * free.nonlinearity()


def test_samples_carry_a_gaussian_as_a_matrix_would() -> None:
    matrix, mean = draw(3, 3, seed=3), draw(3, seed=4)
    root = torch.linalg.cholesky(torch.eye(3, dtype=torch.float64) * 0.5)
    moved, covariance = carried_by_samples(lambda x: x @ matrix, mean, root, draw(200_000, 3))
    torch.testing.assert_close(moved, mean @ matrix, atol=0.02, rtol=0)
    torch.testing.assert_close(covariance, 0.5 * matrix.T @ matrix, atol=0.05, rtol=0)


def test_a_class_that_comes_again_has_the_gaussian_of_all_its_images() -> None:
    features, statistics = draw(30, 4), ClassGaussians(2, 4).double()
    statistics.record(1, features[:11])
    statistics.record(1, features[11:])
    torch.testing.assert_close(statistics.mean[1, 0], features.mean(0))
    torch.testing.assert_close(statistics.variance[1, 0], features.T.cov(correction=0))
    assert statistics.known[:, 0].tolist() == [False, True]


def test_samples_have_the_mean_and_covariance_of_their_class() -> None:
    features, statistics = draw(50, 3) @ draw(3, 3, seed=1) + 2, ClassGaussians(2, 3).double()
    statistics.record(0, features)
    labels, mean, root = statistics.gaussians()
    samples = drawn(mean, root, draw(1, 100_000, 3, seed=2))[0]
    assert labels.tolist() == [0]
    torch.testing.assert_close(samples.mean(0), features.mean(0), atol=0.03, rtol=0)
    expected = features.T.cov(correction=0) + 1e-3 * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(samples.T.cov(), expected, atol=0.08, rtol=0.02)


def test_older_classes_are_drawn_closer_to_the_origin() -> None:
    statistics = ClassGaussians(3, 2, shrink=0.1).double()
    for label in range(3):
        statistics.record(label, torch.ones(2, 2, dtype=torch.float64))
        statistics.task[label] = label
    means = statistics.gaussians()[1][:, 0]
    assert means.tolist() == pytest.approx([0.9 + 0.1 / 3, 0.9 + 0.2 / 3, 1.0])


def test_rounding_of_a_large_covariance_of_few_images() -> None:
    """Ten images in 64 dimensions: in float32 the smallest eigenvalues are far below -1e-3."""
    features, statistics = 300 * draw(10, 64), ClassGaussians(1, 64)
    statistics.record(0, features)
    assert torch.linalg.eigvalsh(statistics.variance[0, 0].double()).min() < -2e-3
    root = statistics.root(0)
    covariance = features.T.cov(correction=0)
    torch.testing.assert_close(root @ root.T, covariance, rtol=1e-6, atol=0.05)
    assert torch.linalg.matrix_rank(root) == 64


def test_gaussians_are_carried_where_known() -> None:
    statistics = ClassGaussians(3, 2).double()
    statistics.record(2, draw(5, 2))
    before = statistics.mean.clone()
    statistics.carry(lambda label, mean, covariance: (mean + label, 4 * covariance))
    torch.testing.assert_close(statistics.mean[2], before[2] + 2)
    assert torch.equal(statistics.mean[:2], before[:2])


def test_the_earlier_network_is_that_of_before_and_leaves_no_trace() -> None:
    layer = nn.Linear(3, 2).double()
    earlier, x = EarlierSelf(layer.parameters), draw(4, 3)
    before = layer(x).detach()
    with torch.no_grad():
        layer.weight += 1
    now = layer(x).detach()
    with earlier.used():
        assert torch.equal(layer(x), before) and not layer(x).requires_grad
    assert torch.equal(layer(x), now)
    earlier.take()
    with earlier.used():
        assert torch.equal(layer(x), now)


def test_moved_features_follow_the_ridge_regression_of_the_drift() -> None:
    before, after, others = draw(9, 4), draw(9, 4, seed=1), draw(3, 4, seed=2)
    centre = sum(before) / 9
    shift = sum(after - before) / 9
    system, right = torch.zeros(4, 4).double(), torch.zeros(4, 4).double()
    for old, new in zip(before, after, strict=True):
        system += torch.outer(old - centre, old - centre)
        right += torch.outer(old - centre, new - old - shift)
    values = torch.linalg.eigvalsh(system)
    turn = torch.linalg.inv(system + 0.3 * values.mean() * torch.eye(4)) @ right
    expected = [x + shift + (x - centre) @ turn for x in others]
    torch.testing.assert_close(moved(others, before, after, 0.3), torch.stack(expected))


def test_an_affine_drift_is_followed_exactly_and_an_infinite_penalty_leaves_the_mean_shift() -> (
    None
):
    before, others = draw(9, 4), draw(3, 4, seed=2)
    matrix, offset = draw(4, 4, seed=3), draw(4, seed=4)
    torch.testing.assert_close(
        moved(others, before, before @ matrix + offset, 0.0), others @ matrix + offset
    )
    after = before @ matrix + offset
    shift = (after - before).mean(0)
    torch.testing.assert_close(moved(others, before, after, math.inf), others + shift)
    same = before[:1].expand(5, 4)  # images that do not differ tell a shift alone
    torch.testing.assert_close(moved(others, same, same + 1, 0.1), others + 1)
