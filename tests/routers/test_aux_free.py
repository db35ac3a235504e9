"""`router=aux_free` by hand, against DeepSeek's formulas, and on a skewed stream."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from smope.metrics.expert_use import max_violation
from smope.routers.aux_free import AuxFree
from smope.routers.base import ExpertState, Routing
from smope.routers.topk import TopK

STATE = ExpertState(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.bool))
KEYS = torch.tensor([[[2.0], [1.0], [-1.0]]])


def built(top_k: int = 1, **options: object) -> AuxFree:
    router = AuxFree(top_k, **options)  # pyright: ignore[reportArgumentType]
    router.build(1, 3, 1)
    return router


def test_the_bias_by_hand() -> None:
    router = built(bias_rate=0.1).train()
    query = torch.ones(4, 1, 1)
    gates = [1 / (1 + math.exp(-score)) for score in (2.0, 1.0, -1.0)]  # .881 .731 .269
    assert router(query, KEYS, STATE).expert_ids.flatten().tolist() == [0] * 4
    router.end_step()
    assert router.bias.flatten().tolist() == pytest.approx([-0.1, 0.1, 0.1])
    assert gates[1] + 0.1 > gates[0] - 0.1
    assert router(query, KEYS, STATE).expert_ids.flatten().tolist() == [1] * 4
    router.end_step()
    assert router.bias.flatten().tolist() == pytest.approx([0.0, 0.0, 0.2])


def test_an_even_load_moves_nothing() -> None:
    router = built(3, bias_rate=0.1).train()
    router(torch.ones(2, 1, 1), KEYS, STATE)
    router.end_step()
    assert router.bias.flatten().tolist() == [0.0, 0.0, 0.0]


def shares(routing: Routing) -> torch.Tensor:
    return (routing.weights * KEYS.shape[-1] ** -0.5).softmax(-1)


def test_sigmoid_gates_are_shares_without_the_bias() -> None:
    router = built(2).eval()
    router.bias.copy_(torch.tensor([[0.0, 0.0, 5.0]]))
    routing = router(torch.ones(1, 1, 1), KEYS, STATE)
    assert routing.expert_ids.flatten().tolist() == [2, 0]
    gates = torch.tensor([-1.0, 2.0]).sigmoid()
    torch.testing.assert_close(shares(routing).flatten(), gates / gates.sum())
    # as much attention as the scores would get
    mass = torch.tensor([-1.0, 2.0]).logsumexp(0)
    torch.testing.assert_close(routing.weights.flatten().logsumexp(0), mass)


def test_softmax_gates_without_a_bias_are_the_best_by_score() -> None:
    query = torch.randn(5, 1, 1, generator=torch.Generator().manual_seed(0))
    ours, plain = built(2, gate="softmax")(query, KEYS, STATE), TopK(2)(query, KEYS, STATE)
    assert torch.equal(ours.expert_ids, plain.expert_ids)
    assert torch.equal(ours.weights, plain.weights)
    gates = (query.view(-1, 1) * KEYS.view(1, 3)).softmax(-1).gather(-1, ours.expert_ids[:, 0])
    torch.testing.assert_close(shares(ours)[:, 0], gates / gates.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    "options", [{}, {"gate": "softmax", "bias_rate": 0.002}], ids=["default", "softmax"]
)
def test_a_skewed_stream_becomes_balanced(options: dict[str, Any]) -> None:
    """Queries with a large part in common: MaxVio falls below 0.1 within some 1/bias_rate steps,
    with the default in a run of a few hundred steps.
    """
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 8, 4, generator=generator)
    router = AuxFree(2, **options)
    router.build(1, 8, 4)
    router.train()
    state = ExpertState(torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 8).bool())
    values = []
    for _ in range(400):
        query = 1.0 + torch.randn(2000, 1, 4, generator=generator)
        ids = router(query, keys, state).expert_ids
        values.append(float(max_violation(ids.flatten().bincount(minlength=8).numpy())))
        router.end_step()
    assert values[0] > 0.5
    assert sum(values[-50:]) / 50 < 0.1


def test_the_next_task_keeps_or_resets_the_bias() -> None:
    for next_task, is_kept in (("keep", True), ("reset", False)):
        router = built(next_task=next_task)
        router.bias.fill_(0.5)
        router.begin_task()
        assert bool(router.bias.all()) == is_kept


def test_a_bias_in_half_precision_training_stays_whole() -> None:
    router = built(bias_rate=0.001).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = router(torch.ones(4, 1, 1, dtype=torch.bfloat16), KEYS, STATE)
        router.end_step()
    assert routing.scores.dtype == routing.weights.dtype == router.bias.dtype == torch.float32
    assert router.step_sum.total.dtype == torch.int64
    assert router.bias[0, 0] == pytest.approx(-0.001)
