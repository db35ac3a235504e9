"""`router=standardised` against the standard scores of each expert, computed image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smope.metrics.expert_use import effective_experts
from smope.routers.base import ExpertState
from smope.routers.standardised import Standardised

HEADS, EXPERTS, WIDTH = 2, 5, 4
STATE = ExpertState(
    torch.zeros(HEADS, EXPERTS, dtype=torch.int64), torch.zeros(HEADS, EXPERTS).bool()
)


def built(momentum: float = 0.9, top_k: int = 2, **options: object) -> Standardised:
    router = Standardised(top_k, momentum, **options)  # pyright: ignore[reportArgumentType]
    router.build(HEADS, EXPERTS, WIDTH)
    return router.train()


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def make_queries(draw: torch.Generator, images: int = 7) -> Tensor:
    common = torch.tensor([2.0, 0.0, -1.0, 0.5])
    return common + torch.randn(images, HEADS, WIDTH, generator=draw)


@pytest.mark.parametrize("scale", [True, False])
def test_after_the_first_step_ranks_are_standard_scores_over_its_images(
    draw: torch.Generator, scale: bool
) -> None:
    router, seen = built(scale=scale), make_queries(draw)
    router(seen, torch.rand(HEADS, EXPERTS, WIDTH, generator=draw), STATE)
    router.end_step()
    keys = torch.rand(HEADS, EXPERTS, WIDTH, generator=draw)  # keys that have learned since
    queries = make_queries(draw)
    ids = router.eval()(queries, keys, STATE).expert_ids
    for head in range(HEADS):
        usual = seen[:, head] @ keys[head].T
        spread = usual.std(0, correction=0) if scale else torch.ones(EXPERTS)
        for image, query in enumerate(queries[:, head]):
            standard = (query @ keys[head].T - usual.mean(0)) / spread
            assert ids[image, head].tolist() == standard.argsort(descending=True)[:2].tolist()


def test_moments_move_towards_those_of_each_step(draw: torch.Generator) -> None:
    router, keys = built(momentum=0.75), torch.rand(HEADS, EXPERTS, WIDTH, generator=draw)
    steps = [make_queries(draw) for _ in range(3)]
    for queries in steps:
        for part in queries.tensor_split(2):  # parts of a batch are one step
            router(part, keys, STATE)
        router.end_step()
    router.end_step()  # without a choice nothing changes
    mean, second = steps[0].mean(0), torch.einsum("bhi,bhj->hij", steps[0], steps[0]) / 7
    for queries in steps[1:]:
        mean = 0.75 * mean + 0.25 * queries.mean(0)
        second = 0.75 * second + 0.25 * torch.einsum("bhi,bhj->hij", queries, queries) / 7
    torch.testing.assert_close(router.mean, mean)
    torch.testing.assert_close(router.second, second)
    assert router.steps == 3


def test_what_queries_share_and_how_long_keys_are_decides_nothing(draw: torch.Generator) -> None:
    """Where inner products alone send every image to the same experts, all of them work."""
    router = built(top_k=1)
    keys = torch.rand(HEADS, EXPERTS, WIDTH, generator=draw)
    keys *= torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).view(1, -1, 1)
    queries = 10 + torch.randn(400, HEADS, WIDTH, generator=draw)
    router(queries, keys, STATE)
    router.end_step()
    routing = router.eval()(queries, keys, STATE)
    for head in range(HEADS):
        assert routing.scores[:, head].argmax(-1).unique().tolist() == [4]
        counts = routing.expert_ids[:, head].flatten().bincount(minlength=EXPERTS)
        assert counts.min() > 0
        assert effective_experts(counts.numpy()) > 3


@pytest.mark.parametrize("next_task", ["keep", "reset"])
def test_the_next_task_keeps_the_moments_or_replaces_them(
    draw: torch.Generator, next_task: str
) -> None:
    router, keys = built(next_task=next_task), torch.rand(HEADS, EXPERTS, WIDTH, generator=draw)
    first, second = make_queries(draw), make_queries(draw)
    for queries in (first, second):
        router(queries, keys, STATE)
        router.end_step()
        router.begin_task()
    kept = 0.9 * first.mean(0) + 0.1 * second.mean(0)
    torch.testing.assert_close(router.mean, kept if next_task == "keep" else second.mean(0))
