"""The losses on cases small enough for pencil and paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smope.losses.classification import task_cross_entropy
from smope.losses.prototype import prototype_loss, prototype_mass_loss
from smope.losses.router import router_loss, router_mass_loss
from smope.routers.base import Routing

LN = math.log


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-6)


def routing(scores: Tensor, expert_ids: list[list[list[int]]]) -> Routing:
    ids = torch.tensor(expert_ids)
    return Routing(scores, ids, scores.gather(-1, ids))


def test_only_the_task_s_classes_compete() -> None:
    """Within classes 2 and 3 the logits are ln 3 and 0: shares 3/4 and 1/4, whatever the others are."""
    logits = torch.tensor([[9.0, -9.0, LN(3), 0.0, 50.0], [-5.0, 7.0, LN(3), 0.0, 80.0]])
    assert task_cross_entropy(logits, torch.tensor([2, 3]), 2, 4).item() == close((LN(4 / 3) + LN(4)) / 2)


def test_other_classes_get_no_gradient() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    task_cross_entropy(logits, torch.tensor([2, 3]), 2, 4).backward()
    assert (logits.grad.abs().sum(0) > 0).tolist() == [False, False, True, True, False]


def test_router_loss_without_margin() -> None:
    """Shares 1/2, 1/4, 1/4; experts 0 and 2 chosen: ln 2 + ln 4."""
    scores = torch.tensor([[[LN(2), 0.0, 0.0]]])
    assert router_loss([routing(scores, [[[0, 2]]])], 0.0).item() == close(LN(8))


def test_router_loss_lifts_what_was_not_chosen() -> None:
    """Scores ln 4, 0, 0 have range ln 4; half of it lifts experts 1 and 2 to ln 2: shares 4/8, 2/8, 2/8."""
    scores = torch.tensor([[[LN(4), 0.0, 0.0]]])
    assert router_loss([routing(scores, [[[0]]])], 0.5).item() == close(LN(2))
    assert router_loss([routing(scores, [[[0, 1]]])], 0.5).item() == close(LN(7 / 4) + LN(7))


def test_router_losses_average_images_and_sum_the_rest() -> None:
    """Two blocks of two images, two heads: equal scores, so that each chosen expert of three costs ln 3 or -1/3."""
    routings = [routing(torch.zeros(2, 2, 3), [[[0, 1], [2, 0]], [[1, 2], [0, 1]]])] * 2
    assert router_loss(routings, 0.7).item() == close(2 * 2 * 2 * LN(3))
    assert router_mass_loss(routings).item() == close(-2 * 2 * 2 / 3)


def test_router_mass_loss() -> None:
    scores = torch.tensor([[[LN(2), 0.0, 0.0]], [[LN(6), LN(3), 0.0]]])
    assert router_mass_loss([routing(scores, [[[0, 2]], [[0, 1]]])]).item() == close(-(3 / 4 + 9 / 10) / 2)


def test_the_margin_carries_no_gradient() -> None:
    """With the range r held fixed, d/ds_e of -log softmax(s + 0.5·r·[e > 0])_0 is the share of e, less 1 for e = 0."""
    scores = torch.tensor([[[LN(4), 0.0, 0.0]]], requires_grad=True)
    router_loss([routing(scores, [[[0]]])], 0.5).backward()
    assert scores.grad.flatten().tolist() == pytest.approx([-1 / 2, 1 / 4, 1 / 4], rel=1e-6)


OLD = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]])


def test_prototype_loss() -> None:
    """Old key 0 = (1, 0) scored 1, 0, -1 on the old keys: its target is 0. Now the keys answer ln 2, 0, 0."""
    keys = torch.tensor([[[[LN(2), 3.0], [0.0, 5.0], [0.0, 1.0]]]])
    frequent = torch.tensor([[[True, False, False]]])
    assert prototype_loss(keys, OLD, frequent, 1).item() == close(LN(2))
    assert prototype_loss(keys, OLD, frequent, 2).item() == close(LN(2) + LN(4))


def test_prototype_loss_averages_prototypes_and_sums_heads() -> None:
    """Keys all alike: every target costs ln 3, however many keys are flagged, in each of two heads."""
    keys, old = torch.ones(1, 2, 3, 2), OLD.expand(1, 2, 3, 2)
    frequent = torch.tensor([[[True, False, False], [True, True, True]]])
    assert prototype_loss(keys, old, frequent, 2).item() == close(2 * 2 * LN(3))


def test_prototype_mass_loss_takes_the_present_best() -> None:
    """Old key 0 is now answered 0, ln 2, 0 by the keys: the best one has half the mass, the best two three quarters."""
    keys = torch.tensor([[[[0.0, 3.0], [LN(2), 5.0], [0.0, 1.0]]]])
    frequent = torch.tensor([[[True, False, False]]])
    assert prototype_mass_loss(keys, OLD, frequent, 1).item() == close(-1 / 2)
    assert prototype_mass_loss(keys, OLD, frequent, 2).item() == close(-3 / 4)
    assert prototype_loss(keys, OLD, frequent, 1).item() == close(LN(4)), "the old best is another one"


@pytest.mark.parametrize("loss", [prototype_loss, prototype_mass_loss])
def test_without_frequent_experts_there_is_no_prototype_loss(loss: object) -> None:
    keys = torch.randn(2, 2, 5, 4, requires_grad=True)
    value = loss(keys, torch.randn(2, 2, 5, 4), torch.zeros(2, 2, 5, dtype=torch.bool), 3)
    assert value.item() == 0
    value.backward()
    assert torch.equal(keys.grad, torch.zeros_like(keys))


@pytest.mark.parametrize("loss", [prototype_loss, prototype_mass_loss])
def test_a_head_without_frequent_experts_adds_nothing(loss: object) -> None:
    draw = torch.Generator().manual_seed(0)
    keys, old = torch.randn(2, 1, 2, 5, 4, generator=draw)
    keys.requires_grad_()
    frequent = torch.zeros(1, 2, 5, dtype=torch.bool)
    frequent[0, 1, 3] = True
    value = loss(keys, old, frequent, 3)
    assert value.item() == pytest.approx(loss(keys[:, 1:], old[:, 1:], frequent[:, 1:], 3).item())
    value.backward()
    assert torch.isfinite(keys.grad).all()
    assert keys.grad[0, 0].abs().max() == 0 < keys.grad[0, 1].abs().max()


@pytest.mark.parametrize("loss", [prototype_loss, prototype_mass_loss])
def test_prototypes_are_constants(loss: object) -> None:
    """Old keys get no gradient even if one could flow, and nothing that goes in is changed."""
    keys, old = torch.randn(2, 1, 2, 5, 4)
    before = keys.clone(), old.clone()
    loss(keys.requires_grad_(), old, torch.ones(1, 2, 5, dtype=torch.bool), 2).backward()
    assert torch.equal(keys, before[0]) and torch.equal(old, before[1])
    assert old.grad is None
