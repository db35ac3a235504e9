"""Virtual outliers: which points are far, how they are drawn, and what the energy loss asks for."""

from __future__ import annotations

import math

import torch

from smope.losses.outliers import energy_loss, far_from, shifted


def test_the_farthest_by_the_kth_nearest_feature() -> None:
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0]])
    points = torch.tensor([[0.0, 1.0], [9.0, 0.0], [20.0, 0.0], [5.0, 0.0]])
    first = [min(math.dist(p, f) for f in features.tolist()) for p in points.tolist()]
    assert (
        far_from(points, features, 1, 2).tolist() == sorted(range(4), key=lambda i: -first[i])[:2]
    )
    second = [sorted(math.dist(p, f) for f in features.tolist())[1] for p in points.tolist()]
    assert (
        far_from(points, features, 2, 3).tolist() == sorted(range(4), key=lambda i: -second[i])[:3]
    )


def test_fewer_features_or_points_than_asked_for() -> None:
    features = torch.randn(3, 4)
    assert sorted(far_from(torch.randn(5, 4), features, 50, 40).tolist()) == [0, 1, 2, 3, 4]


def test_points_round_their_centres() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [100.0, -50.0]])
    points = shifted(centres, 0.1, 2000).view(2, 2000, 2)
    torch.testing.assert_close(points.mean(1), centres, atol=0.02, rtol=0)
    torch.testing.assert_close(points.std(1), torch.full((2, 2), 0.1), atol=0.01, rtol=0)
    torch.testing.assert_close(points[0] - centres[0], points[1] - centres[1], atol=1e-4, rtol=0)


def test_energies_on_their_sides_of_the_thresholds_cost_nothing() -> None:
    sure, unsure = torch.full((4, 3), 20.0), torch.zeros(5, 3)
    assert energy_loss(sure, unsure, -15.0, -3.0).item() == 0


def test_what_is_beyond_is_measured_by_huber() -> None:
    logits, outlier_logits = (
        torch.full((4, 3), 14.0 - math.log(3)),
        torch.full((5, 3), 3.5 - math.log(3)),
    )
    # energies -14 (1 above its threshold) and -3.5 (0.5 below its own)
    torch.testing.assert_close(
        energy_loss(logits, outlier_logits, -15.0, -3.0), torch.tensor(0.5 + 0.125)
    )
