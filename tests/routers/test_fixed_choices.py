"""`router=hash` and `router=random`: what is fixed stays fixed, and every expert has its part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smope.metrics.expert_use import effective_experts
from smope.routers.base import ExpertState, Router
from smope.routers.hash import Hash
from smope.routers.random import Random

HEADS, EXPERTS, WIDTH = 2, 25, 16
STATE = ExpertState(
    torch.zeros(HEADS, EXPERTS, dtype=torch.int64), torch.zeros(HEADS, EXPERTS).bool()
)
both = pytest.mark.parametrize("made", [Hash, Random])


def built(made: type[Router], **options: int) -> Router:
    router = made(3, **options)  # pyright: ignore[reportCallIssue]
    router.build(HEADS, EXPERTS, WIDTH)
    return router


def random_rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_hash_by_a_slow_loop() -> None:
    router, query = built(Hash, bits=3), random_rows(5, HEADS, WIDTH)
    ids = router(query, random_rows(HEADS, EXPERTS, WIDTH, seed=1), STATE).expert_ids
    for image in range(5):
        for head in range(HEADS):
            votes = [0.0] * EXPERTS
            for bit in range(3):
                directions = router.directions[head, :, 8 * bit : 8 * bit + 8].T
                negative = sum(float(query[image, head] @ row) < 0 for row in directions)
                for expert in range(EXPERTS):
                    vote = float(router.votes[head, bit, expert])
                    votes[expert] += -vote if negative % 2 else vote
            order = sorted(range(EXPERTS), key=lambda expert, votes=votes: -votes[expert])
            assert ids[image, head].tolist() == order[:3]


def test_images_of_equal_signs_have_the_same_experts() -> None:
    router, query = built(Hash), random_rows(1, HEADS, WIDTH)
    keys = random_rows(HEADS, EXPERTS, WIDTH)
    assert torch.equal(
        router(query, keys, STATE).expert_ids, router(3.7 * query, keys, STATE).expert_ids
    )


def test_the_random_gate_by_a_slow_loop() -> None:
    router, query = built(Random), random_rows(5, HEADS, WIDTH)
    ids = router(query, random_rows(HEADS, EXPERTS, WIDTH, seed=1), STATE).expert_ids
    for image in range(5):
        for head in range(HEADS):
            scores = [float(query[image, head] @ row) for row in router.gate[head]]
            order = sorted(range(EXPERTS), key=lambda expert, scores=scores: -scores[expert])
            assert ids[image, head].tolist() == order[:3]


@both
def test_the_choice_is_fixed_and_keys_have_no_part_in_it(made: type[Router]) -> None:
    query = random_rows(5, HEADS, WIDTH).requires_grad_()
    first, second = (random_rows(HEADS, EXPERTS, WIDTH, seed=seed) for seed in (1, 2))
    ids = built(made)(query, first, STATE).expert_ids
    torch.manual_seed(123)  # the run's own generator has no part in it
    again = built(made)
    assert torch.equal(ids, again(query, second, STATE).expert_ids)
    assert torch.equal(ids, again.eval()(query, first, STATE).expert_ids)
    assert not list(again.parameters())
    other = {"hash_seed": 1} if made is Hash else {"gate_seed": 1}
    assert not torch.equal(ids, built(made, **other)(query, first, STATE).expert_ids)


@both
def test_alike_images_use_many_experts(made: type[Router]) -> None:
    """Queries of which a part as large as the rest is common to all, as those of a ViT are."""
    query = random_rows(2000, HEADS, WIDTH) + random_rows(1, HEADS, WIDTH, seed=5)
    routing = built(made)(query, random_rows(HEADS, EXPERTS, WIDTH), STATE)
    effective = effective_experts(routing.chosen.sum(0).numpy())
    assert effective.min() > (20 if made is Hash else 8)
