"""Routers with gates by hand: three experts, one head; and the identities of their papers.

Expert keys have width 1, so that logits are scores and a weight's exponential is an expert's part
of attention beside the tokens.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.experts.attention import as_one_key
from smope.routers.aux_free import AuxFree
from smope.routers.base import ExpertState, Noise, Router, Routing
from smope.routers.dense import Dense
from smope.routers.gate import gated_weights
from smope.routers.noisy_topk import NoisyTopK
from smope.routers.softmax_topk import SoftmaxTopK
from smope.routers.switch import Switch
from smope.routers.topk import TopK
from smope.routers.topk_softmax import TopKSoftmax

LN = math.log
KEYS = torch.tensor([[[LN(5)], [LN(3)], [LN(2)]]])  # softmax over all: 1/2, 3/10, 1/5
ONE = torch.ones(1, 1, 1)


def state(heads: int, experts: int) -> ExpertState:
    counts = torch.zeros(heads, experts, dtype=torch.int64)
    return ExpertState(counts, counts.bool())


def built(router: Any, heads: int = 1, experts: int = 3, width: int = 1) -> Any:
    router.build(heads, experts, width)
    return router.eval()


def parts(router: Router, keys: Tensor = KEYS, query: Tensor = ONE) -> tuple[list[int], list[Any]]:
    """The experts chosen for the first image, and the exponentials of their weights."""
    routing = router(query, keys, state(*keys.shape[:2]))
    exponentials = (routing.weights[0, 0] * keys.shape[-1] ** -0.5).exp().tolist()
    return routing.expert_ids[0, 0].tolist(), [pytest.approx(x, rel=1e-5) for x in exponentials]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gates_divide_and_scale_what_scores_get() -> None:
    scores, gates = torch.tensor([[[LN(5), LN(3)]]]), torch.tensor([[[0.1, 0.4]]])
    weights = gated_weights(gates.log(), scores, 1.0)
    torch.testing.assert_close(weights.exp(), 8 * gates)


def test_mixtral_s_order_by_hand() -> None:
    """Gates 5/8 and 3/8 of a part of 5 + 3."""
    assert parts(built(TopKSoftmax(2))) == ([0, 1], [5.0, 3.0])


def test_v_moe_s_order_by_hand() -> None:
    """Gates 1/2 and 3/10 of a part of 5 + 3: not divided by their sum of 8/10."""
    assert parts(built(SoftmaxTopK(2))) == ([0, 1], [4.0, 2.4])


def test_switch_by_hand() -> None:
    """Gate 1/2 of a part of 5."""
    assert parts(built(Switch(1))) == ([0], [2.5])


def test_a_learned_gate_by_hand() -> None:
    """Logits 0, ln 3 and ln 1 of the gate alone choose; keys decide on the part."""
    router = built(TopKSoftmax(2, gate="learned"))
    with torch.no_grad():
        router.matrix.weight.copy_(torch.tensor([[[LN(1)], [LN(3)], [-9.0]]]))
    assert parts(router) == ([1, 0], [6.0, 2.0])
    noisy = built(NoisyTopK(2))
    noisy.gate.weight.data.copy_(router.matrix.weight)
    assert parts(noisy) == ([1, 0], [6.0, 2.0])


def test_mixtral_s_order_is_softmax_then_top_k_then_renormalise() -> None:
    query, keys = random(5, 2, 4), random(2, 6, 4, seed=1)
    ours = built(TopKSoftmax(3), 2, 6, 4)(query, keys, state(2, 6))
    values, ids = (ours.gate_logits(0.5)).softmax(-1).topk(3)
    assert torch.equal(ours.expert_ids, ids)
    torch.testing.assert_close(
        (ours.weights * 0.5).softmax(-1), values / values.sum(-1, keepdim=True)
    )
    plain = TopK(3)(query, keys, state(2, 6))
    assert torch.equal(ours.expert_ids, plain.expert_ids)
    torch.testing.assert_close(ours.weights, plain.weights)


@pytest.mark.parametrize("make", [SoftmaxTopK, Switch])
def test_unnormalised_gates_with_all_experts_are_the_dense_mixture(make: Any) -> None:
    query, keys, values = random(5, 2, 4), random(2, 6, 4, seed=1), random(2, 6, 4, seed=2)
    ours = built(make(6), 2, 6, 4)(query, keys, state(2, 6))
    dense = Dense()(query, keys, state(2, 6))
    one, other = (as_one_key(each, values, 0.5) for each in (ours, dense))
    torch.testing.assert_close(one.logit, other.logit)
    torch.testing.assert_close(one.value, other.value)


def test_unnormalised_gates_scale_the_experts_part() -> None:
    """Between Mixtral's and V-MoE's order lies a factor: the sum of the chosen gates."""
    query, keys, values = random(5, 2, 4), random(2, 6, 4, seed=1), random(2, 6, 4, seed=2)
    routings = [
        built(make(2), 2, 6, 4)(query, keys, state(2, 6)) for make in (TopKSoftmax, SoftmaxTopK)
    ]
    renormalised, scaled = (as_one_key(each, values, 0.5) for each in routings)
    chosen_mass = routings[1].gate_logits(0.5).softmax(-1).topk(2).values.sum(-1)
    assert chosen_mass.max() < 0.99
    torch.testing.assert_close(scaled.logit, renormalised.logit + chosen_mass.log())
    torch.testing.assert_close(scaled.value, renormalised.value)


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        (SoftmaxTopK(1, gate="learned"), True),
        (Switch(1, gate="learned"), True),
        (TopKSoftmax(1, gate="learned"), False),  # its one gate is 1, whatever the logit
    ],
    ids=["softmax_topk", "switch", "topk_softmax"],
)
def test_a_gate_that_chooses_one_expert_learns(router: Any, expected: bool) -> None:
    built(router).train()
    router(ONE, KEYS, state(1, 3)).weights.sum().backward()
    assert bool(router.matrix.weight.grad.abs().max() > 1e-6) == expected


def test_noise_by_the_formula() -> None:
    router = built(NoisyTopK(2), 2, 6, 4).train()
    router.gate.weight.data.copy_(random(2, 6, 4, seed=3))
    router.spread.weight.data.copy_(random(2, 6, 4, seed=4))
    query, keys = random(5, 2, 4), random(2, 6, 4, seed=1)
    torch.manual_seed(0)
    routing = router(query, keys, state(2, 6))
    torch.manual_seed(0)
    epsilon = torch.randn(5, 2, 6)
    logits = (query.unsqueeze(2) * router.gate.weight).sum(-1)
    std = (1 + (query.unsqueeze(2) * router.spread.weight).sum(-1).exp()).log() + 0.01
    torch.testing.assert_close(routing.logits, logits)
    torch.testing.assert_close(routing.noise.noisy, logits + std * epsilon)
    assert torch.equal(routing.expert_ids, routing.noise.noisy.topk(2).indices)


def test_v_moe_s_noise_is_a_share_of_one_expert() -> None:
    query, keys = random(5, 2, 4), random(2, 6, 4, seed=1)
    router = built(SoftmaxTopK(2, noise=3.0), 2, 6, 4).train()
    torch.manual_seed(0)
    routing = router(query, keys, state(2, 6))
    torch.manual_seed(0)
    torch.testing.assert_close(
        routing.noise.noisy, routing.gate_logits(0.5) + 3 / 6 * torch.randn(5, 2, 6)
    )
    assert router.eval()(query, keys, state(2, 6)).noise is None


def test_jitter_multiplies_the_query_and_leaves_scores_alone() -> None:
    query, keys = random(5, 2, 4), random(2, 6, 4, seed=1)
    router = built(Switch(2, jitter=0.2), 2, 6, 4).train()
    torch.manual_seed(0)
    routing = router(query, keys, state(2, 6))
    torch.manual_seed(0)
    factors = 0.8 + 0.4 * torch.rand(5, 2, 4)
    torch.testing.assert_close(
        routing.logits, ((query * factors).unsqueeze(2) * keys).sum(-1) * 0.5
    )
    torch.testing.assert_close(routing.scores, (query.unsqueeze(2) * keys).sum(-1))


def phi(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def noisy_routing(ids: list[int]) -> Routing:
    """Clean logits 1, 0, -1 and noisy ones 1, -0.5, 0.5, with standard deviations 1, 2, 4."""
    logits, noisy = torch.tensor([[[1.0, 0.0, -1.0]]]), torch.tensor([[[1.0, -0.5, 0.5]]])
    noise = Noise(noisy, torch.tensor([[[1.0, 2.0, 4.0]]]))
    expert_ids = torch.tensor([[ids]])
    return Routing(logits, expert_ids, logits.gather(-1, expert_ids), logits, noise)


def test_shazeer_s_load_by_hand() -> None:
    """Experts 0 and 2 are chosen: they stay above -0.5, the largest other; 1 has to exceed 0.5."""
    load = NoisyTopK(2).load(noisy_routing([0, 2]))
    expected = [phi((1 + 0.5) / 1), phi((0 - 0.5) / 2), phi((-1 + 0.5) / 4)]
    assert load.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_v_moe_s_load_by_hand() -> None:
    """All against 0.5, the second largest noisy logit."""
    load = SoftmaxTopK(2).load(noisy_routing([0, 2]))
    expected = [phi((1 - 0.5) / 1), phi((0 - 0.5) / 2), phi((-1 - 0.5) / 4)]
    assert load.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_an_expert_that_dropped_out_has_no_load_and_bars_nobody() -> None:
    """Expert 1, which has the largest noisy logit, is not available: the other two always win."""
    logits = torch.tensor([[[0.0, 5.0, -1.0]]], requires_grad=True)
    std = torch.ones(1, 1, 3, requires_grad=True)
    noise = Noise(logits + 0.5, std, torch.tensor([[True, False, True]]))
    expert_ids = torch.tensor([[[0, 2]]])
    routing = Routing(logits, expert_ids, logits.gather(-1, expert_ids), logits, noise)
    load = NoisyTopK(2).load(routing)
    assert load.flatten().tolist() == [1, 0, 1]
    load.sum().backward()
    assert logits.grad.isfinite().all() and std.grad.isfinite().all()
    assert SoftmaxTopK(2).load(routing)[0, 0, 1] == 0


@pytest.mark.parametrize("router", [SoftmaxTopK(2, noise=0), Switch(2, jitter=0)])
def test_gates_are_those_of_the_available_experts_alone(router) -> None:
    """Expert 0 drops out of four: what is chosen gets what it would get among the other three."""
    keys, query = random(1, 4, 8), random(5, 1, 8, seed=1)
    built(router, 1, 4, 8)
    alone = router(query, keys[:, 1:], state(1, 3))
    available = torch.tensor([[False, True, True, True]])
    routing = router(query, keys, replace(state(1, 4), available=available))
    assert torch.equal(routing.expert_ids, alone.expert_ids + 1)
    torch.testing.assert_close(routing.weights, alone.weights)


def test_shazeer_s_load_is_how_often_an_expert_is_chosen() -> None:
    """With one expert's noise drawn anew many times, the share of draws in which it is chosen."""
    routing, draws = noisy_routing([0, 2]), random(100_000)
    load = NoisyTopK(2).load(routing)
    for expert in range(3):
        noisy = routing.noise.noisy[0, 0].repeat(len(draws), 1)
        noisy[:, expert] = routing.logits[0, 0, expert] + routing.noise.std[0, 0, expert] * draws
        chosen = (noisy.topk(2).indices == expert).any(-1).float().mean()
        assert float(chosen) == pytest.approx(float(load[0, 0, expert]), abs=5e-3)


def test_shazeer_s_importance_are_the_gates_of_the_chosen() -> None:
    routing = noisy_routing([0, 2])
    importance = NoisyTopK(2).importance(routing, routing.logits).flatten().tolist()
    gates = torch.tensor([1.0, 0.5]).softmax(0).tolist()
    assert importance == pytest.approx([gates[0], 0, gates[1]])


def test_a_gate_of_zeros_chooses_evenly_in_training() -> None:
    """Without noise all ties would go to the same experts."""
    router, keys = built(NoisyTopK(2), 1, 8, 4), random(1, 8, 4)
    query = 1 + random(4000, 1, 4)
    counts = []
    for training in (True, False):
        torch.manual_seed(0)
        ids = router.train(training)(query, keys, state(1, 8)).expert_ids
        counts.append(ids.flatten().bincount(minlength=8))
    assert counts[0].min() > 850 and counts[0].max() < 1150  # 1000 each
    assert counts[1].count_nonzero() == 2


@pytest.mark.parametrize(
    "router", [NoisyTopK(2), SoftmaxTopK(2, gate="learned"), Switch(gate="learned")]
)
def test_half_precision_leaves_routing_whole(router: Router) -> None:
    """A choice in bfloat16 would differ: only the rounding of the query is left."""
    router = copy.deepcopy(built(router, 2, 6, 4)).train()
    for matrix in router.parameters():
        matrix.data.copy_(random(2, 6, 4, seed=5))
    query, keys = random(500, 2, 4).bfloat16(), random(2, 6, 4, seed=1)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = router(query, keys, state(2, 6))
    torch.manual_seed(0)
    outside = router(query.float(), keys, state(2, 6))
    assert inside.weights.dtype == inside.gate_logits(0.5).dtype == torch.float32
    assert torch.equal(inside.expert_ids, outside.expert_ids)
    torch.testing.assert_close(inside.weights, outside.weights)


@pytest.mark.parametrize("next_task", ["keep", "reset"])
def test_the_next_task_keeps_or_resets_what_the_gate_learned(next_task: Any) -> None:
    for router in (
        NoisyTopK(2, next_task=next_task),
        SoftmaxTopK(2, gate="learned", next_task=next_task),
    ):
        built(router)
        for matrix in router.parameters():
            matrix.data.fill_(7.0)
        router.begin_task()
        for matrix in router.parameters():
            assert bool((matrix == 7).all()) == (next_task == "keep")
            assert matrix.abs().max() <= (7 if next_task == "keep" else 1)


def test_scores_far_below_0_have_gates() -> None:
    """Sigmoids of -2000 are 0, and their share is still a number."""
    keys = torch.tensor([[[-2000.0], [-2001.0], [-2002.0]]])
    router = AuxFree(2)
    router.build(1, 3, 1)
    weights = router.eval()(ONE, keys, state(1, 3)).weights
    torch.testing.assert_close(weights.flatten().softmax(0), torch.tensor([0.0, -1.0]).softmax(0))
