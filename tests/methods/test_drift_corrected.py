"""RSIAT, SSIAT, SLDC and SLCA: losses and alignment equal loops, and Gaussians are carried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smope.methods._shared.drift import linear_map, semantic_shift
from smope.methods._shared.drift_corrected import DriftCorrected
from smope.methods.base import TaskSpan
from smope.methods.rsiat import RSIAT
from smope.methods.slca import SLCA
from smope.methods.sldc import SLDC
from tests.tiny import tiny_backbone

FIRST, SECOND = TaskSpan(0, 0, 2), TaskSpan(1, 2, 4)
LABELS = torch.tensor([2, 3, 3, 2])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(4, 3, 32, 32, generator=generator, dtype=torch.float64)


def in_second_task(kind: Any, **settings: Any) -> Any:
    """A method that has learned two classes, and something of the task after them."""
    torch.manual_seed(0)
    method = kind(tiny_backbone(), 4, **settings).double()
    for label in (0, 1):
        method.statistics.record(label, 3 + draw(9, 32, seed=label))
    if isinstance(method, DriftCorrected):
        method.begin_task(SECOND)
        for modules in method.shared:
            nn.init.normal_(modules.up, std=0.3)
    return method


@pytest.mark.parametrize("kind", [RSIAT, SLDC])
def test_the_network_before_the_task_stays_at_hand(kind: Any) -> None:
    method, plain = in_second_task(kind), tiny_backbone().double()
    torch.testing.assert_close(method.earlier_features(images()), plain(images()))
    assert (method.features(images()) - plain(images())).abs().max() > 0.01


def test_later_tasks_of_rsiat_follow_and_turn_as_a_loop_says() -> None:
    method = in_second_task(RSIAT, follow_weight=3.0, turn_weight=1.5, representation_loss=0.5)
    nn.init.normal_(method.projector.last.weight, std=0.1)
    losses = method.losses(images(), LABELS, SECOND)
    old, new = method.earlier_features(images()), method.features(images())
    projected = [method.projector(row) for row in old]
    squares = [((a - b) ** 2).mean() for a, b in zip(new, projected, strict=True)]
    cosines = [
        torch.cosine_similarity(method.projector(method.statistics.mean[label, 0]), row, dim=0)
        for label in (0, 1)
        for row in projected
    ]
    torch.testing.assert_close(losses["follow"], 1.5 * torch.stack(squares).mean())
    torch.testing.assert_close(losses["turn"], 0.75 * torch.stack(cosines).mean())
    assert losses.keys() == {"cosface", "follow", "turn"}


def test_the_weight_of_pairs_grows_over_epochs() -> None:
    method, values = in_second_task(RSIAT, pair_warm_up=4), []
    for epoch in (0, 2, 4, 9):
        method.begin_epoch(epoch)
        values.append(method.losses(images(), LABELS - 2, FIRST)["pairs"])
    assert values[0] == 0 and values[2] == values[3] > 0
    torch.testing.assert_close(values[1], values[2] / 2)


def test_ssiat_has_one_loss_and_no_projector() -> None:
    method = in_second_task(RSIAT, representation_loss=0.0)
    assert method.projector is None and method.needs_whole_batch() is None
    for task, labels in ((FIRST, LABELS - 2), (SECOND, LABELS)):
        assert method.losses(images(), labels, task).keys() == {"cosface"}


def test_rsiat_carries_means_by_the_shift_of_images() -> None:
    method, before, after = in_second_task(RSIAT), draw(20, 32) + 3, draw(20, 32, seed=5) + 4
    means, covariances = method.statistics.mean.clone(), method.statistics.variance.clone()
    method.carry(before, after, SECOND)
    shifts = semantic_shift(before, after, means[:2, 0], 4.0)
    torch.testing.assert_close(method.statistics.mean[:2, 0], means[:2, 0] + shifts)
    assert torch.equal(method.statistics.variance, covariances)


def test_sldc_carries_means_and_covariances_by_a_matrix() -> None:
    method, before, after = (
        in_second_task(SLDC, transport="linear"),
        draw(40, 32) + 3,
        draw(40, 32, seed=5) + 4,
    )
    means, covariances = method.statistics.mean.clone(), method.statistics.variance.clone()
    method.carry(before, after, SECOND)
    matrix = linear_map(before, after, 1e-4, 1.0)
    for label in (0, 1):
        expected = matrix.T @ covariances[label, 0] @ matrix + 0.01 * torch.eye(32).double()
        torch.testing.assert_close(method.statistics.mean[label, 0], means[label, 0] @ matrix)
        torch.testing.assert_close(method.statistics.variance[label, 0], expected)


def test_where_features_do_not_move_sldc_leaves_gaussians_nearly_as_they_are() -> None:
    method, before = in_second_task(SLDC, transport_steps=2000), draw(200, 32) + 3
    means = method.statistics.mean.clone()
    method.carry(before, before, SECOND)
    moved = (method.statistics.mean - means)[:2, 0].norm(dim=-1)
    assert (moved < 0.05 * means[:2, 0].norm(dim=-1)).all()


def test_logits_of_slca_have_one_length_in_the_alignment() -> None:
    method = in_second_task(SLCA, temperature=0.1)
    method.statistics.record(2, draw(5, 32))
    method.statistics.task[2] = 1
    [part] = method.aligned()
    features = draw(3, 32, seed=7)
    for logits, row in zip(method.classify(features), part.classify(features), strict=True):
        length = (logits[:2].norm() + logits[2].abs()) / 2
        torch.testing.assert_close(row, logits / (0.1 * length), rtol=1e-5, atol=1e-6)
