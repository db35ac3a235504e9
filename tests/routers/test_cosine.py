"""`router=cosine` by hand and inside a method."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smope.losses.prototype import find_prototypes
from smope.methods.base import TaskSpan
from smope.routers.base import ExpertState
from smope.routers.cosine import Cosine
from tests.contracts.conftest import make_method
from tests.tiny import tiny_backbone

STATE = ExpertState(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3).bool())
KEYS = torch.tensor([[[9.0, 0.0], [0.0, 0.1], [-2.0, 2.0]]])


def built(top_k: int = 2, temperature: float = 0.5) -> Cosine:
    router = Cosine(top_k, temperature)
    router.build(1, 3, 2)
    return router


def test_logits_are_cosines_over_the_temperature() -> None:
    query = torch.tensor([[[3.0, 4.0]], [[0.0, 0.2]]])
    routing = built()(query, KEYS, STATE)
    cosines = torch.tensor([[0.6, 0.8, 0.1 * math.sqrt(2)], [0.0, 1.0, 1 / math.sqrt(2)]])
    torch.testing.assert_close(routing.scores[:, 0] / math.sqrt(2), cosines / 0.5)
    assert routing.expert_ids[:, 0].tolist() == [[1, 0], [1, 2]]
    assert torch.equal(routing.weights, routing.scores.gather(-1, routing.expert_ids))


def test_the_length_of_a_key_or_a_query_changes_nothing() -> None:
    query = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0))
    plain = built()(query, KEYS, STATE)
    longer = built()(7 * query, KEYS * torch.tensor([0.1, 5.0, 30.0])[:, None], STATE)
    torch.testing.assert_close(longer.scores, plain.scores)


def test_the_temperature_learns_and_has_a_bound() -> None:
    router = built()
    routing = router(torch.tensor([[[3.0, 4.0]]]), KEYS, STATE)
    routing.weights.sum().backward()
    assert router.log_temperature.grad.item() == pytest.approx(-routing.weights.sum().item())
    router.log_temperature.data.fill_(-20.0)
    router.end_step()
    assert router.log_temperature.exp().item() == pytest.approx(0.01)


def test_a_query_of_zeros_is_no_nan() -> None:
    assert built()(torch.zeros(1, 1, 2), KEYS, STATE).scores.isfinite().all()


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_warm_up_and_the_prototypes_compare_by_cosine_too() -> None:
    method = make_method("smope", tiny_backbone(), 4, router="cosine", router_loss_weight=0.0)
    first, second = TaskSpan(0, 0, 2), TaskSpan(1, 2, 4)
    labels = torch.tensor([0, 1, 0, 1])
    method.train().dense = True
    method.losses(images(), labels, first)
    dense = [routing.scores for routing in method.routings]
    method.dense = False
    method.losses(images(), labels, first)
    # in the first block; later ones see what it did
    torch.testing.assert_close(dense[0], method.routings[0].scores)
    for bank in method.experts:
        bank.counts[:, :9] = 1
    method.begin_task(second)
    before = method.losses(images(), labels + 2, second)["prototype"]
    for bank in method.experts:
        bank.keys.data *= 3
    after = method.losses(images(), labels + 2, second)["prototype"]
    torch.testing.assert_close(after, before)
    bank = method.experts[0]
    unit = bank.old_keys / bank.old_keys.norm(dim=-1, keepdim=True)
    keys, prototypes = method._keys_and_prototypes()
    expected = find_prototypes(unit[None], bank.frequent[None], method.top_k)
    torch.testing.assert_close(prototypes.rows[:1], expected.rows)
    assert torch.equal(prototypes.targets[:1], expected.targets)
    torch.testing.assert_close(keys[0].norm(dim=-1), torch.full((2, 25), 4 / 0.1))
