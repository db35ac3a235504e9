"""The means of method=smope against a collapse of its experts: similarity loss, expert dropout, and
experts that are drawn again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.errors import UserError
from smope.losses.similarity import similarity_loss
from smope.methods.base import TaskSpan
from smope.methods.smope import SMoPE
from smope.training.trainer import Trainer
from tests.contracts.conftest import ROUTERS, make_method, make_router, make_shallow_method
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream
from tests.two_processes import in_two_processes

FIRST, SECOND = TaskSpan(0, 0, 2), TaskSpan(1, 2, 4)
LABELS = torch.tensor([0, 1, 0, 1, 0, 1])
CHOOSING = [name for name in ROUTERS if make_router(name).sparse]


def images() -> Tensor:
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def made(router: str = "adaptive_noise", **changes: Any) -> SMoPE:
    return make_method("smope", tiny_backbone(), 4, router=router, **changes).train()


def trained(router: str = "adaptive_noise", parts: int = 1, **changes: Any) -> dict[str, Tensor]:
    """What a method remembers after two tasks."""
    settings = tiny_settings(
        epochs=1,
        dense_epochs=0,
        precision="float64",
        alignment_epochs=1,
        gradient_accumulation_steps=parts,
    )
    method, device = make_shallow_method("smope", router=router, **changes), torch.device("cpu")
    Trainer(method, tiny_stream(), settings, seed=0, device=device).fit()
    return {key: value.clone() for key, value in method.trained_state().items()}


def test_the_similarity_loss_reaches_the_total() -> None:
    method = made(similarity_loss_weight=0.5)
    for bank in method.experts:
        bank.values.data[:, 1:] = bank.values[:, :1] + 0.1 * bank.values[:, 1:]
    losses = method.losses(images(), LABELS, FIRST)
    expected = [
        similarity_loss(bank.values, routing.chosen, method.top_k)
        for bank, routing in zip(method.experts, method.routings, strict=True)
    ]
    assert losses["similarity"].item() == pytest.approx(0.5 * sum(expected).item() / 6)
    assert losses["similarity"] > 0
    losses["similarity"].backward()
    assert all(bank.values.grad.any() for bank in method.experts)
    assert "similarity" not in made().losses(images(), LABELS, FIRST)
    method.dense = True
    assert "similarity" not in method.losses(images(), LABELS, FIRST)


@pytest.mark.parametrize("router", CHOOSING)
def test_an_expert_that_dropped_out_is_not_chosen(router: str) -> None:
    method = made(router, expert_dropout=0.6)
    method.losses(images(), LABELS, FIRST)
    number = []
    for bank, routing in zip(method.experts, method.routings, strict=True):
        assert not routing.chosen[:, ~bank.available].any()
        number.append(bank.available.sum(-1))
    assert min(map(min, number)) >= method.top_k
    assert 5 < torch.stack(number).double().mean() < 15  # of 25, 10 are expected
    before = [bank.available for bank in method.experts]
    method.losses(images(), LABELS, FIRST)
    assert all(bank.available is old for bank, old in zip(method.experts, before, strict=True))
    method.end_step()
    method.losses(images(), LABELS, FIRST)
    assert not any(
        torch.equal(bank.available, old) for bank, old in zip(method.experts, before, strict=True)
    )


def test_k_experts_stay_whatever_drops_out() -> None:
    method = made(expert_dropout=0.999)
    method.losses(images(), LABELS, FIRST)
    assert {int(row) for bank in method.experts for row in bank.available.sum(-1)} == {5}


def test_in_evaluation_and_in_the_warm_up_no_expert_drops_out() -> None:
    method, plain = made(expert_dropout=0.6), made()
    method.losses(images(), LABELS, FIRST)
    for mode in (method, plain):
        mode.eval()
    with torch.no_grad():
        assert torch.equal(method(images()), plain(images()))
    for mode in (method.train(), plain.train()):
        mode.dense = True
    ours, theirs = (mode.losses(images(), LABELS, FIRST) for mode in (method, plain))
    assert torch.equal(ours["cross_entropy"], theirs["cross_entropy"])


def train_all(folder: Path) -> None:
    from smope.distributed import collectives

    torch.save(trained(expert_dropout=0.3), folder / f"{collectives.rank()}.pt")


def test_parts_of_a_batch_and_two_processes_drop_the_same(tmp_path: Path) -> None:
    whole = trained(expert_dropout=0.3)
    in_two_processes("tests.methods.test_against_collapse:train_all", tmp_path)
    others = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for other in (trained(parts=2, expert_dropout=0.3), *others):
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=1e-8)


@pytest.mark.parametrize("expert_init", ["uniform", "zero_values"])
@pytest.mark.parametrize("expert_space", ["head", "input"])
def test_experts_that_no_task_used_are_drawn_again(expert_init: str, expert_space: str) -> None:
    method = made(reinitialise_unused=True, expert_init=expert_init, expert_space=expert_space)
    for bank in method.experts:
        bank.values.data += 1
        bank.counts[:, 3:8] = 2
    before = {key: value.clone() for key, value in method.trained_state().items()}
    method.begin_task(SECOND)
    changed = set()
    for key, value in method.trained_state().items():
        if key.startswith("banks.") and key.endswith((".keys", ".values")):
            same = (value == before[key]).all(-1)
            assert same[:, 3:8].all()
            fresh = value[~same]
            changed.add(key)
            assert len(fresh) == 2 * 20
            assert fresh.min() >= 0 and fresh.max() <= 1
            assert bool(fresh.any()) == (key.endswith("keys") or expert_init == "uniform")
        elif not key.endswith((".old_keys", ".old_values", ".frequent")):
            assert torch.equal(value, before[key])
    assert len(changed) == 12
    plain = made()
    before = {key: value.clone() for key, value in plain.named_parameters()}
    plain.begin_task(SECOND)
    assert all(torch.equal(value, before[key]) for key, value in plain.named_parameters())


def test_the_first_task_draws_nothing_again() -> None:
    method = made(reinitialise_unused=True)
    before = method.experts[0].keys.clone()
    method.begin_task(FIRST)
    assert torch.equal(method.experts[0].keys, before)


@pytest.mark.parametrize(
    ("router", "settings", "message"),
    [
        ("dense", {"expert_dropout": 0.1}, r"method.expert_dropout=0.1: .* router=dense uses all"),
        ("dense", {"similarity_loss_weight": 1.0}, "similarity_loss_weight=1: it has no effect"),
    ],
)
def test_without_a_choice_they_are_refused(
    router: str, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        made(router, **settings)
