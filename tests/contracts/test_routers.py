"""What every router of conf/router must do; a new one is found by its file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smope.config.signatures import class_attribute
from smope.declare.balance import LOSSES
from smope.routers.base import ExpertState, Router, Routing, rows_of_tokens
from smope.routers.step_sum import StepSum

from .conftest import ROUTERS, make_router

BATCH, HEADS, TOKENS, EXPERTS, WIDTH, TOP_K = 6, 2, 5, 9, 8, 3

# What failing tests print; CONTRIBUTING.md lists them.
DISTINCT = (
    "A router chooses top_k distinct experts for each image and head, as int64 numbers of experts; "
    "other numbers only if fixed_number is False."
)
PLAIN_SCORES = (
    "Scores are the inner products of what `compared` gives, and weights too unless plain_weights "
    "is False; a penalty changes the choice alone."
)
BY_ITSELF = (
    "An image is routed by itself, whatever else is in its batch; in training too, "
    "unless couples_batch is True."
)
GRADIENT = (
    "The gradient of the weights reaches the query and the keys of the chosen experts; "
    "those of other experts only if plain_weights is False."
)
RANDOM = (
    "In training a router repeats itself, unless random_in_training is True; "
    "then it draws from torch's global generator alone."
)
UNCHANGED = "A router changes none of the tensors that it is given."
REPEATS = "At evaluation the same image gets the same experts again."
ALL_EXPERTS = "With top_k equal to the number of experts all of them are chosen."
REMEMBERS = "What a router remembers changes in end_step alone, and at evaluation not at all."
AVAILABLE = "An expert that is not available is not chosen."
SERVES = (
    "A router gives what the losses that it names in balance_losses are computed from, "
    "a finite row for each image."
)
RULES = (
    DISTINCT, PLAIN_SCORES, BY_ITSELF, GRADIENT, UNCHANGED, REPEATS, RANDOM, ALL_EXPERTS,
    REMEMBERS, AVAILABLE, SERVES,
)  # fmt: skip

every_router = pytest.mark.parametrize("name", ROUTERS)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture
def query(name: str) -> Tensor:
    tokens = [TOKENS] if make_router(name).reads_tokens else []
    draw = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, HEADS, *tokens, WIDTH, generator=draw)


def of_images(rows: Tensor, routing: Routing) -> Tensor:
    """What belongs to an image, (B, rows of an image, ...)."""
    return rows.unflatten(0, (-1, routing.tokens or 1))


@pytest.fixture
def keys() -> Tensor:
    return torch.rand(HEADS, EXPERTS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def state() -> ExpertState:
    """Some experts frequent and some never used, in both heads."""
    counts = torch.tensor([[0, 3, 0, 9, 1, 0, 2, 7, 4], [5, 0, 0, 0, 6, 1, 0, 8, 2]])
    return ExpertState(counts, counts > 4)


def router_of(name: str, training: bool) -> Router:
    router = make_router(name, top_k=TOP_K)
    router.build(HEADS, EXPERTS, WIDTH)
    return router.train(training)


def seeded(router: Router, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
    """A decision with the same noise whenever it is asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return router(query, keys, state)


@every_router
@both_modes
def test_shapes_and_distinct_experts(
    name: str, training: bool, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    router = router_of(name, training)
    routing = router(query, keys, state)
    rows, chosen = BATCH * (routing.tokens or 1), routing.expert_ids.shape[-1]
    assert router.top_k == TOP_K, DISTINCT
    assert routing.scores.shape == (rows, HEADS, EXPERTS), DISTINCT
    assert routing.expert_ids.shape == routing.weights.shape == (rows, HEADS, chosen), DISTINCT
    assert routing.expert_ids.dtype == torch.int64, DISTINCT
    assert all(len(set(ids)) == chosen for ids in routing.expert_ids.flatten(0, 1).tolist()), (
        DISTINCT
    )
    assert 0 <= routing.expert_ids.min() <= routing.expert_ids.max() < EXPERTS, DISTINCT
    if router.fixed_number:
        assert (routing.chosen.sum(-1) == (TOP_K if router.sparse else EXPERTS)).all(), DISTINCT


@every_router
@both_modes
def test_weights_are_the_unpenalised_scores(
    name: str, training: bool, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    router = router_of(name, training)
    routing = router(query, keys, state)
    plain = routing.scores.gather(-1, routing.expert_ids)
    left_out = routing.weights == -torch.inf
    assert torch.equal(routing.weights, plain.masked_fill(left_out, -torch.inf)) or (
        not router.plain_weights
    ), PLAIN_SCORES
    if router.reads_tokens and routing.tokens is None:
        return  # scores of its own, see tests/routers
    rows, compared = router.compared(rows_of_tokens(query) if routing.tokens else query, keys)
    torch.testing.assert_close(
        routing.scores, (rows.unsqueeze(2) * compared).sum(-1), msg=PLAIN_SCORES
    )


@every_router
@both_modes
def test_experts_may_be_out_of_reach(
    name: str, training: bool, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    router = router_of(name, training)
    available = torch.rand(HEADS, EXPERTS, generator=torch.Generator().manual_seed(2)) < 0.6
    available[:, :TOP_K] = True
    routing = router(query, keys, replace(state, available=available))
    assert not routing.chosen[:, ~available].any() or not router.sparse, AVAILABLE


@every_router
@both_modes
def test_an_image_is_routed_by_itself(
    name: str, training: bool, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    router = router_of(name, training)
    if training and router.couples_batch:
        return
    together = seeded(router, query, keys, state)
    for image in range(BATCH):
        # the same row, so that noise is the same, among other images
        others = torch.randn_like(query)
        others[image] = query[image]
        assert_same_choice(seeded(router, others, keys, state), image, together, image)
    if training and router.random_in_training:
        return
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    shuffled = router(query[order], keys, state)
    for image in range(BATCH):
        assert_same_choice(shuffled, image, together, int(order[image]))
        alone = router(query[image : image + 1], keys, state)
        assert_same_choice(alone, 0, together, image)


def assert_same_choice(first: Routing, image: int, second: Routing, other: int) -> None:
    ids, other_ids = of_images(first.expert_ids, first), of_images(second.expert_ids, second)
    assert torch.equal(ids[image], other_ids[other]), BY_ITSELF
    weights, other_weights = of_images(first.weights, first), of_images(second.weights, second)
    torch.testing.assert_close(weights[image], other_weights[other], msg=BY_ITSELF)


@every_router
def test_draws_from_the_run_s_generator_alone(
    name: str, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    router = router_of(name, training=True)
    first, again = (seeded(router, query, keys, state) for _ in range(2))
    assert torch.equal(first.expert_ids, again.expert_ids), RANDOM
    assert torch.equal(first.weights, again.weights), RANDOM
    before = torch.get_rng_state()
    router(query, keys, state)
    drawn = not torch.equal(torch.get_rng_state(), before)
    assert drawn == router.random_in_training, RANDOM
    before = torch.get_rng_state()
    router.eval()(query, keys, state)
    assert torch.equal(torch.get_rng_state(), before), REPEATS


@every_router
def test_serves_the_losses_that_it_names(
    name: str, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    router = router_of(name, training=True)
    source = f"{type(router).__module__}.{type(router).__name__}"
    assert set(router.balance_losses) <= set(LOSSES), SERVES
    assert class_attribute(source, "balance_losses") == router.balance_losses, SERVES
    routing = router(query, keys, state)
    logits = routing.gate_logits(WIDTH**-0.5)
    rows = [logits]
    if "importance" in router.balance_losses:
        rows.append(router.importance(routing, logits))
    if "load" in router.balance_losses:
        rows.append(router.load(routing))
        assert rows[-1].min() >= 0 and rows[-1].max() <= 1, SERVES
    for row in rows:
        assert row.shape == routing.scores.shape and row.isfinite().all(), SERVES
        assert row.dtype == torch.float32, SERVES


@every_router
@both_modes
def test_gradient_reaches_keys_and_query(
    name: str, training: bool, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    query.requires_grad_()
    keys.requires_grad_()
    router = router_of(name, training)
    routing = router(query, keys, state)
    weights = routing.weights
    weights[weights > -torch.inf].square().sum().backward()
    assert query.grad.abs().flatten(2).sum(-1).min() > 0, GRADIENT
    chosen = routing.chosen.any(0)
    reached = keys.grad.abs().sum(-1) > 0
    assert reached[chosen].all(), GRADIENT
    assert torch.equal(reached, chosen) or not router.plain_weights, GRADIENT


@every_router
@both_modes
def test_changes_nothing_that_it_is_given(
    name: str, training: bool, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    given = (query, keys, state.counts, state.frequent)
    before = [tensor.clone() for tensor in given]
    router_of(name, training)(query, keys, state)
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True)), UNCHANGED


@every_router
def test_repeats_itself_at_evaluation(
    name: str, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    router = router_of(name, training=False)
    assert torch.equal(
        router(query, keys, state).expert_ids, router(query, keys, state).expert_ids
    ), REPEATS


@every_router
def test_remembers_in_end_step_alone(
    name: str, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    router = router_of(name, training=True)
    before = memory(router)
    router(query, keys, state)
    assert same(router, before), REMEMBERS
    router.end_step()
    collects = any(isinstance(module, StepSum) for module in router.modules())
    assert same(router, before) == (not collects), REMEMBERS
    after = memory(router)
    router.eval()(query, keys, state)
    router.end_step()
    assert same(router, after), REMEMBERS


def memory(router: Router) -> dict[str, Tensor]:
    """What is saved of a router but for its parameters, which the optimizer changes."""
    learned = dict(router.named_parameters())
    return {key: value.clone() for key, value in router.state_dict().items() if key not in learned}


def same(router: Router, state: dict[str, Tensor]) -> bool:
    now = memory(router)
    return now.keys() == state.keys() and all(torch.equal(now[key], state[key]) for key in now)


@every_router
def test_takes_as_many_experts_as_there_are(
    name: str, query: Tensor, keys: Tensor, state: ExpertState
) -> None:
    router = make_router(name, top_k=EXPERTS)
    router.build(HEADS, EXPERTS, WIDTH)
    routing = router(query, keys, state)
    assert routing.chosen.all(), ALL_EXPERTS


class TestAdaptiveNoise:
    """By hand: one image, one head, scores 10, 8, 6, 4, 0 (range 10), the best two of five."""

    keys = torch.tensor([[[10.0], [8.0], [6.0], [4.0], [0.0]]])

    def chosen(self, router: Router, counts: list[int], frequent: list[int]) -> list[int]:
        state = ExpertState(torch.tensor([counts]), torch.tensor([frequent]).bool())
        return router(torch.ones(1, 1, 1), self.keys, state).expert_ids.flatten().tolist()

    def test_training_holds_frequent_experts_back_by_epsilon_ranges(self) -> None:
        used = [1, 1, 1, 1, 1]
        assert self.chosen(make_router(top_k=2, epsilon=0.3).train(), used, [0, 0, 0, 0, 0]) == [
            0,
            1,
        ]
        assert self.chosen(make_router(top_k=2, epsilon=0.3).train(), used, [1, 0, 0, 0, 0]) == [
            1,
            0,
        ]
        assert self.chosen(make_router(top_k=2, epsilon=0.5).train(), used, [1, 0, 0, 0, 0]) == [
            1,
            2,
        ]
        assert self.chosen(make_router(top_k=2, epsilon=0.5).train(), used, [1, 1, 1, 1, 1]) == [
            0,
            1,
        ]

    def test_training_does_not_ask_who_was_used(self) -> None:
        assert self.chosen(make_router(top_k=2).train(), [0, 0, 0, 1, 1], [0] * 5) == [0, 1]

    def test_evaluation_excludes_unused_experts(self) -> None:
        assert self.chosen(make_router(top_k=2).eval(), [0, 0, 3, 0, 1], [1] * 5) == [2, 4]
        assert self.chosen(make_router(top_k=2).eval(), [0, 0, 0, 0, 0], [0] * 5) == [0, 1]
        # With fewer used experts than K the best unused one is next.
        assert self.chosen(make_router(top_k=2).eval(), [0, 0, 0, 0, 4], [0] * 5) == [4, 0]

    def test_evaluation_without_exclusion_is_by_score(self) -> None:
        router = make_router(top_k=2, exclude_unused_experts=False).eval()
        assert self.chosen(router, [0, 0, 3, 0, 1], [1] * 5) == [0, 1]
