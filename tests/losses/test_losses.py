"""The losses on cases small enough for pencil and paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.losses import prototype
from smope.losses.classification import (
    symmetric_cross_entropy,
    task_cosface,
    task_cross_entropy,
)
from smope.losses.prototype import find_prototypes, prototype_loss, prototype_mass_loss
from smope.losses.representation import pair_loss
from smope.losses.router import router_loss, router_mass_loss
from smope.routers.base import Routing

LN = math.log


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-6)


def routing(scores: Tensor, expert_ids: list[list[list[int]]]) -> Routing:
    ids = torch.tensor(expert_ids)
    return Routing(scores, ids, scores.gather(-1, ids))


def test_only_the_task_s_classes_compete() -> None:
    """Within classes 2 and 3 the logits are ln 3 and 0: shares 3/4 and 1/4, whatever the others
    are.
    """
    logits = torch.tensor([[9.0, -9.0, LN(3), 0.0, 50.0], [-5.0, 7.0, LN(3), 0.0, 80.0]])
    assert task_cross_entropy(logits, torch.tensor([2, 3]), (2, 3)).item() == close(
        (LN(4 / 3) + LN(4)) / 2
    )


def test_cosface_lowers_the_true_cosine_alone() -> None:
    """Cosines 0.6 and 0.2, scale 10, margin 0.4: the true class ties with the other."""
    logits = 10 * torch.tensor([[0.9, 0.6, 0.2]])
    labels = torch.tensor([1])
    assert task_cosface(logits, labels, (1, 2), 10, 0.4).item() == close(LN(2))
    plain = task_cross_entropy(logits, labels, (1, 2))
    assert torch.equal(task_cosface(logits, labels, (1, 2), 10, 0.0), plain)


def test_symmetric_cross_entropy_equals_the_sum_over_classes() -> None:
    """Written as in SLDC's code: labels clamped to at least 1e-4."""
    logits = torch.tensor([[9.0, 1.0, 2.0, 0.5], [0.0, 3.0, -1.0, 0.0]], dtype=torch.float64)
    labels, classes = torch.tensor([2, 3]), (1, 2, 3)
    shares = logits[:, 1:].softmax(-1)
    one_hot = torch.eye(3, dtype=torch.float64)[labels - 1].clamp(min=1e-4)
    forward = -(one_hot.round() * shares.log()).sum(-1).mean()
    reverse = -(shares * one_hot.log()).sum(-1).mean()
    value = symmetric_cross_entropy(logits, labels, classes)
    torch.testing.assert_close(value, 0.5 * forward + 0.5 * reverse)


def test_pairs_equal_a_loop() -> None:
    features = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, alike, apart = torch.tensor([0, 1, 0, 2, 1, 0]), [], []
    for i in range(6):
        for j in range(6):
            cosine = torch.cosine_similarity(features[i], features[j], dim=0)
            if labels[i] != labels[j]:
                apart.append((cosine - 0.1).relu())
            elif i != j:
                alike.append(1 - cosine)
    expected = torch.stack(alike).mean() + 1.5 * torch.stack(apart).mean()
    torch.testing.assert_close(pair_loss(features, labels, 1.5, 0.1), expected)
    assert pair_loss(features[:1], labels[:1], 1.5, 0.1) == 0


def test_the_task_s_classes_may_have_gaps() -> None:
    logits = torch.randn(3, 6)
    labels = torch.tensor([5, 0, 3])
    rows = [-logits[i, [0, 3, 5]].log_softmax(0)[j] for i, j in enumerate((2, 0, 1))]
    assert task_cross_entropy(logits, labels, (0, 3, 5)).item() == close((sum(rows) / 3).item())


def test_other_classes_get_no_gradient() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    task_cross_entropy(logits, torch.tensor([2, 3]), (2, 3)).backward()
    assert (logits.grad.abs().sum(0) > 0).tolist() == [False, False, True, True, False]


def test_router_loss_without_margin() -> None:
    """Shares 1/2, 1/4, 1/4; experts 0 and 2 chosen: ln 2 + ln 4."""
    scores = torch.tensor([[[LN(2), 0.0, 0.0]]])
    assert router_loss([routing(scores, [[[0, 2]]])], 0.0).item() == close(LN(8))


def test_router_loss_lifts_what_was_not_chosen() -> None:
    """Scores ln 4, 0, 0 have range ln 4; half of it lifts experts 1 and 2 to ln 2: shares 4/8,
    2/8, 2/8.
    """
    scores = torch.tensor([[[LN(4), 0.0, 0.0]]])
    assert router_loss([routing(scores, [[[0]]])], 0.5).item() == close(LN(2))
    assert router_loss([routing(scores, [[[0, 1]]])], 0.5).item() == close(LN(7 / 4) + LN(7))


def test_router_losses_average_images_and_sum_the_rest() -> None:
    """Two blocks of two images, two heads: equal scores, so that each chosen expert of three costs
    ln 3 or -1/3.
    """
    routings = [routing(torch.zeros(2, 2, 3), [[[0, 1], [2, 0]], [[1, 2], [0, 1]]])] * 2
    assert router_loss(routings, 0.7).item() == close(2 * 2 * 2 * LN(3))
    assert router_mass_loss(routings).item() == close(-2 * 2 * 2 / 3)


def test_router_mass_loss() -> None:
    scores = torch.tensor([[[LN(2), 0.0, 0.0]], [[LN(6), LN(3), 0.0]]])
    assert router_mass_loss([routing(scores, [[[0, 2]], [[0, 1]]])]).item() == close(
        -(3 / 4 + 9 / 10) / 2
    )


def test_the_margin_carries_no_gradient() -> None:
    """With the range r held fixed, d/ds_e of -log softmax(s + 0.5·r·[e > 0])_0 is the share of e,
    less 1 for e = 0.
    """
    scores = torch.tensor([[[LN(4), 0.0, 0.0]]], requires_grad=True)
    router_loss([routing(scores, [[[0]]])], 0.5).backward()
    assert scores.grad.flatten().tolist() == pytest.approx([-1 / 2, 1 / 4, 1 / 4], rel=1e-6)


OLD = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]])


def test_prototype_loss() -> None:
    """Old key 0 = (1, 0) scored 1, 0, -1 on the old keys: its target is 0.

    Now the keys answer ln 2, 0, 0.
    """
    keys = torch.tensor([[[[LN(2), 3.0], [0.0, 5.0], [0.0, 1.0]]]])
    frequent = torch.tensor([[[True, False, False]]])
    assert prototype_loss(keys, find_prototypes(OLD, frequent, 1)).item() == close(LN(2))
    assert prototype_loss(keys, find_prototypes(OLD, frequent, 2)).item() == close(LN(2) + LN(4))


def test_prototype_loss_averages_prototypes_and_sums_heads() -> None:
    """Keys all alike: every target costs ln 3, however many keys are flagged, in each of two
    heads.
    """
    keys, old = torch.ones(1, 2, 3, 2), OLD.expand(1, 2, 3, 2)
    frequent = torch.tensor([[[True, False, False], [True, True, True]]])
    assert prototype_loss(keys, find_prototypes(old, frequent, 2)).item() == close(2 * 2 * LN(3))


def test_prototype_mass_loss_takes_the_present_best() -> None:
    """Old key 0 is now answered 0, ln 2, 0 by the keys: the best one has half the mass, the best
    two three quarters.
    """
    keys = torch.tensor([[[[0.0, 3.0], [LN(2), 5.0], [0.0, 1.0]]]])
    frequent = torch.tensor([[[True, False, False]]])
    assert prototype_mass_loss(keys, find_prototypes(OLD, frequent, 1)).item() == close(-1 / 2)
    assert prototype_mass_loss(keys, find_prototypes(OLD, frequent, 2)).item() == close(-3 / 4)
    assert prototype_loss(keys, find_prototypes(OLD, frequent, 1)).item() == close(LN(4)), (
        "the old best is another one"
    )


@pytest.mark.parametrize("loss", [prototype_loss, prototype_mass_loss])
def test_without_frequent_experts_there_is_no_prototype_loss(loss: Any) -> None:
    keys = torch.randn(2, 2, 5, 4, requires_grad=True)
    old, frequent = torch.randn(2, 2, 5, 4), torch.zeros(2, 2, 5, dtype=torch.bool)
    value = loss(keys, find_prototypes(old, frequent, 3))
    assert value.item() == 0
    value.backward()
    assert torch.equal(keys.grad, torch.zeros_like(keys))


@pytest.mark.parametrize("loss", [prototype_loss, prototype_mass_loss])
def test_a_head_without_frequent_experts_adds_nothing(loss: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    keys, old = torch.randn(2, 1, 2, 5, 4, generator=draw)
    keys.requires_grad_()
    frequent = torch.zeros(1, 2, 5, dtype=torch.bool)
    frequent[0, 1, 3] = True
    value = loss(keys, find_prototypes(old, frequent, 3))
    alone = loss(keys[:, 1:], find_prototypes(old[:, 1:], frequent[:, 1:], 3))
    assert value.item() == pytest.approx(alone.item())
    value.backward()
    assert torch.isfinite(keys.grad).all()
    assert keys.grad[0, 0].abs().max() == 0 < keys.grad[0, 1].abs().max()


@pytest.mark.parametrize("loss", [prototype_loss, prototype_mass_loss])
def test_prototypes_are_constants(loss: Any) -> None:
    """Old keys get no gradient even if one could flow, and nothing that goes in is changed."""
    keys, old = torch.randn(2, 1, 2, 5, 4)
    before = keys.clone(), old.clone()
    prototypes = find_prototypes(old, torch.ones(1, 2, 5, dtype=torch.bool), 2)
    loss(keys.requires_grad_(), prototypes).backward()
    assert torch.equal(keys, before[0]) and torch.equal(old, before[1])
    assert old.grad is None


@pytest.mark.parametrize("loss", [prototype_loss, prototype_mass_loss])
@pytest.mark.parametrize("at_once", [1, 100, 1000])
def test_prototype_losses_in_parts(
    loss: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few scores are computed at a time, value and gradient are those of all at once."""
    draw = torch.Generator().manual_seed(0)
    old, keys = torch.randn(2, 2, 3, 9, 4, generator=draw, dtype=torch.float64)
    frequent = torch.rand(2, 3, 9, generator=draw) < 0.5
    found = []
    for number in (prototype.AT_ONCE, at_once):
        monkeypatch.setattr(prototype, "AT_ONCE", number)
        leaf = keys.clone().requires_grad_()
        value = loss(leaf, find_prototypes(old, frequent, 2))
        (3 * value).backward()
        found.append((value.item(), leaf.grad))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-12)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-12, atol=1e-12)


def test_prototypes_are_the_frequent_old_keys() -> None:
    frequent = torch.tensor([[[False, True, False, True], [False, False, True, False]]])
    old = torch.randn(1, 2, 4, 3)
    found = find_prototypes(old, frequent, 2)
    assert torch.equal(found.rows[0, 0], old[0, 0, [1, 3]]) and torch.equal(
        found.rows[0, 1, 0], old[0, 1, 2]
    )
    assert found.weights.tolist() == [[[0.5, 0.5], [1.0, 0.0]]]
    assert torch.equal(found.targets[0, 1, 0], (old[0, 1] @ old[0, 1, 2]).topk(2).indices)
