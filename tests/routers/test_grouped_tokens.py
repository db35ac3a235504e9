"""`router=expert_choice` and `router=batch_priority`: slow loops, groups, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.cli.main import main
from smope.errors import UserError
from smope.methods.base import TaskSpan
from smope.routers.base import ExpertState
from smope.routers.batch_priority import BatchPriority
from smope.routers.expert_choice import ExpertChoice
from smope.routers.grouped_tokens import GroupedTokens
from smope.routers.token import Token
from smope.training.trainer import Trainer
from tests.contracts.conftest import make_method
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream

HEADS, EXPERTS, WIDTH, TOKENS, TOP_K = 2, 6, 8, 7, 2
STATE = ExpertState(
    torch.zeros(HEADS, EXPERTS, dtype=torch.int64), torch.zeros(HEADS, EXPERTS).bool()
)
both = pytest.mark.parametrize("made", [ExpertChoice, BatchPriority])


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


QUERY, KEYS = draw(3, HEADS, TOKENS, WIDTH), draw(HEADS, EXPERTS, WIDTH, seed=1)


def slow_gates(query: Tensor) -> list[list[list[list[float]]]]:
    """Of each head, image and token: the softmax over all experts."""
    return [
        [
            [(KEYS[head] @ row / math.sqrt(WIDTH)).softmax(0).tolist() for row in image[head]]
            for image in query
        ]
        for head in range(HEADS)
    ]


def slow_expert_choice(gates: list[list[float]]) -> list[set[int]]:
    """For a group of tokens: the experts that took each."""
    room = math.ceil(len(gates) * TOP_K / EXPERTS)
    taken: list[set[int]] = [set() for _ in gates]
    for expert in range(EXPERTS):
        order = sorted(range(len(gates)), key=lambda token: -gates[token][expert])
        for token in order[:room]:
            taken[token].add(expert)
    return taken


def slow_batch_priority(gates: list[list[float]], capacity: float) -> list[set[int]]:
    room = math.ceil(math.ceil(len(gates) * TOP_K * capacity / EXPERTS) / 4) * 4
    order = sorted(range(len(gates)), key=lambda token: -max(gates[token]))
    wanted, taken = [0] * EXPERTS, [set[int]() for _ in gates]
    for rank in range(TOP_K):
        for token in order:
            expert = sorted(range(EXPERTS), key=lambda e, t=token: -gates[t][e])[rank]
            wanted[expert] += 1
            if wanted[expert] <= room:
                taken[token].add(expert)
    return taken


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("capacity", [None, 0.3, 1.05])
def test_who_takes_whom_and_with_which_weight(capacity: float | None, training: bool) -> None:
    if capacity is None:
        router: GroupedTokens = ExpertChoice(TOP_K, noise=0.0)
    else:
        router = BatchPriority(TOP_K, capacity, capacity, noise=0.0)
    routing = router.train(training)(QUERY, KEYS, STATE)
    chosen = routing.chosen.unflatten(0, (3, TOKENS))
    weights = routing.weights.unflatten(0, (3, TOKENS))
    for head, images in enumerate(slow_gates(QUERY)):
        groups = [[row for image in images for row in image]] if training else images
        taken = [
            experts
            for group in groups
            for experts in (
                slow_expert_choice(group)
                if capacity is None
                else slow_batch_priority(group, capacity)
            )
        ]
        for number, experts in enumerate(taken):
            image, token = divmod(number, TOKENS)
            assert set(chosen[image, token, head].nonzero().flatten().tolist()) == experts
            masses = {
                e: math.exp(float(QUERY[image, head, token] @ KEYS[head, e]) / math.sqrt(WIDTH))
                for e in experts
            }
            for expert in experts:
                expected = images[image][token][expert] * sum(masses.values())
                weight = float(weights[image, token, head, expert])
                assert math.exp(weight / math.sqrt(WIDTH)) == pytest.approx(expected)


def test_every_expert_takes_equally_many() -> None:
    routing = ExpertChoice(TOP_K)(QUERY, KEYS, STATE)
    assert (routing.chosen.sum(0) == math.ceil(3 * TOKENS * TOP_K / EXPERTS)).all()


@both
def test_an_image_is_a_group_of_its_own_in_evaluation(made: Any) -> None:
    router = made(TOP_K)
    for training in (False, True):
        router.train(training).noise = 0.0
        together = router(QUERY, KEYS, STATE).chosen
        alone = torch.cat([router(image[None], KEYS, STATE).chosen for image in QUERY])
        assert torch.equal(together, alone) != training


@both
def test_noise_in_training_alone(made: Any) -> None:
    router = made(TOP_K, noise=20.0)
    torch.manual_seed(0)
    first, second = (router(QUERY, KEYS, STATE).chosen for _ in range(2))
    assert not torch.equal(first, second)
    router.eval()
    assert torch.equal(*(router(QUERY, KEYS, STATE).chosen for _ in range(2)))


def test_with_room_for_all_every_token_has_its_best_k() -> None:
    routing = BatchPriority(TOP_K, capacity=EXPERTS, noise=0.0)(QUERY, KEYS, STATE)
    assert torch.equal(routing.chosen, Token(TOP_K)(QUERY, KEYS, STATE).chosen)


@both
def test_a_token_without_experts_has_a_finite_gradient(made: Any) -> None:
    query, keys = QUERY.clone().requires_grad_(), KEYS.clone().requires_grad_()
    router = made(1, noise=0.0) if made is ExpertChoice else made(1, 0.1, noise=0.0)
    routing = router(query, keys, STATE)
    assert not routing.chosen.any(-1).all()
    routing.weights[routing.weights > -torch.inf].sum().backward()
    assert query.grad.isfinite().all() and keys.grad.isfinite().all()


def method(router: str) -> Any:
    return make_method("smope", tiny_backbone(), 4, router=router)


@pytest.mark.parametrize("router", ["expert_choice", "batch_priority"])
def test_it_trains_and_classifies_an_image_as_in_its_batch(router: str) -> None:
    trainer = Trainer(
        method(router), tiny_stream(), tiny_settings(epochs=1), seed=0, device=torch.device("cpu")
    )
    trainer.fit()
    trained = trainer.method.double().eval()
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        alone = torch.cat([trained(image[None]) for image in images])
        torch.testing.assert_close(trained(images), alone)
    use = trainer.history.expert_use[-1]
    assert (use["chosen"], use["experts"]) == (5, 25)
    assert all(5 <= value <= 25 for value in use["effective"])
    counted = trainer.method.experts[0].counts
    assert counted.sum() > 0
    losses = trained.train().losses(images, torch.tensor([0, 1, 0, 1]), TaskSpan(0, 0, 2))
    assert all(value.isfinite() for value in losses.values())


def test_what_divides_a_batch_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["train", "experiment=smoke", "method=smope", "router=expert_choice"]
    assert main([*few, "trainer.gradient_accumulation_steps=2"]) == 2
    assert "steps=2: router=expert_choice divides the images of a" in capsys.readouterr().err
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(few) == 2
    assert "which 2 processes cannot share; start one process" in capsys.readouterr().err
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(UserError, match="router=expert_choice"):
        Trainer(
            method("expert_choice"),
            tiny_stream(),
            tiny_settings(gradient_accumulation_steps=2),
            seed=0,
            device=torch.device("cpu"),
        )


@pytest.mark.parametrize("router", ["expert_choice", "batch_priority"])
def test_an_export_is_refused_by_name(router: str) -> None:
    with pytest.raises(UserError, match=f"router={router} cannot be exported"), torch.no_grad():
        torch.jit.trace(method(router).eval(), torch.rand(2, 3, 32, 32))
