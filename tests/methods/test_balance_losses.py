"""Losses against uneven use inside methods: they reach the total, whatever divides the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.declare.balance import LOSSES
from smope.distributed import collectives
from smope.errors import UserError
from smope.methods.base import TaskSpan
from smope.training.preflight import check_batch_split
from smope.training.trainer import Trainer
from tests.contracts.conftest import ROUTERS, make_method, make_router, make_shallow_method
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream
from tests.two_processes import in_two_processes

SERVED = [(router, loss) for router in ROUTERS for loss in make_router(router).balance_losses]
FIRST = TaskSpan(0, 0, 2)


def with_losses(router: str = "topk", method: str = "smope", **weights: float) -> Any:
    keys = {f"{name}_loss_weight": weight for name, weight in weights.items()}
    return make_method(method, tiny_backbone(), 4, router=router, **keys)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, 32, 32, generator=generator), torch.tensor([0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(("router", "loss"), SERVED)
def test_a_loss_that_is_on_reaches_the_total(router: str, loss: str) -> None:
    """With this loss alone, keys or the router's own parameters have a gradient."""
    method = with_losses(router, **{loss: 0.5}).train()
    torch.manual_seed(0)
    losses = method.losses(*batch(), FIRST)
    assert losses[loss].requires_grad and losses[loss].dtype == torch.float32
    losses[loss].backward()
    learned = [*(bank.keys for bank in method.experts), *method.routers.parameters()]
    gradients = [parameter.grad for parameter in learned if parameter.grad is not None]
    assert len(gradients) >= len(method.experts)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


@pytest.mark.parametrize(("router", "loss"), [pair for pair in SERVED if pair[1] != "router_z"])
def test_experts_that_dropped_out_do_not_count(router: str, loss: str) -> None:
    """Nor do they learn from a loss: their keys have no gradient."""
    # of a single block: gates of one reach those of the next through the image
    keys = {f"{loss}_loss_weight": 1.0, "expert_dropout": 0.5, "blocks": [2]}
    method = make_method("smope", tiny_backbone(), 4, router=router, **keys).train()
    torch.manual_seed(0)
    method.losses(*batch(), FIRST)[loss].backward()
    [bank] = method.experts
    assert bank.available is not None and not bank.available.all()
    if bank.keys.grad is not None:
        assert not bank.keys.grad[~bank.available].any()


def test_a_weight_multiplies_its_loss_alone() -> None:
    images, labels = batch()
    once, twice = (
        with_losses(importance=weight, balance=0.1).train().losses(images, labels, FIRST)
        for weight in (0.25, 0.5)
    )
    torch.testing.assert_close(twice["importance"], 2 * once["importance"])
    assert torch.equal(twice["balance"], once["balance"])


def test_none_is_on_by_default() -> None:
    for method in ("smope", "smope_plus"):
        losses = with_losses(method=method).train().losses(*batch(), FIRST)
        assert set(losses) == {"cross_entropy", "router"}


def test_none_is_on_where_all_experts_are_used() -> None:
    method = with_losses(balance=1.0).train()
    method.dense = True
    assert set(method.losses(*batch(), FIRST)) == {"cross_entropy"}


def test_half_precision_leaves_them_whole() -> None:
    images, labels = batch()
    method = with_losses(importance=1.0, balance=1.0, router_z=1.0).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method.losses(images, labels, FIRST)
    assert {losses[name].dtype for name in ("importance", "balance", "router_z")} == {torch.float32}


@pytest.mark.parametrize("loss", LOSSES)
def test_all_experts_serve_none(loss: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{loss}_loss_weight=0\.5: .*router=dense"):
        with_losses("dense", **{loss: 0.5})


def trained(router: str, **changes: Any) -> Trainer:
    served = make_router(router).balance_losses
    weights = {f"{loss}_loss_weight": 0.1 for loss in served}
    method = make_shallow_method("smope", router=router, **weights)
    settings = tiny_settings(batch_size=7, epochs=1, dense_epochs=0, precision="float64", **changes)
    trainer = Trainer(method, tiny_stream(), settings, seed=0, device=torch.device("cpu"))
    trainer.fit()
    return trainer


DIVIDED = [name for name in ROUTERS if not make_router(name).couples_batch]


def train_all(folder: Path) -> None:
    for name in DIVIDED:
        state = trained(name).method.trained_state()
        torch.save(state, folder / f"{name}-{collectives.rank()}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes("tests.methods.test_balance_losses:train_all", folder)
    return folder


@pytest.mark.parametrize("router", DIVIDED)
def test_two_processes_learn_what_one_does(router: str, two: Path) -> None:
    """Shares of 3 and 4 images; noise is drawn, and losses compare images, over the whole batch."""
    whole = trained(router).method.trained_state()
    for rank in range(2):
        state = torch.load(two / f"{router}-{rank}.pt")
        assert state.keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-8, msg=key)


@pytest.mark.parametrize("loss", ["importance", "balance"])
def test_what_compares_images_is_not_taken_in_parts(loss: str) -> None:
    method, settings = with_losses(**{loss: 0.5}), tiny_settings(gradient_accumulation_steps=2)
    with pytest.raises(
        UserError, match=rf"method\.{loss}_loss_weight=0\.5 .*is not the mean over its parts"
    ):
        check_batch_split(method, tiny_stream(), settings)
    check_batch_split(with_losses(router_z=0.5), tiny_stream(), settings)


@pytest.mark.parametrize("router", ROUTERS)
def test_what_is_drawn_for_a_batch_is_not_taken_in_parts(router: str) -> None:
    declared, settings = make_router(router), tiny_settings(gradient_accumulation_steps=2)
    if declared.random_in_training or declared.couples_batch:
        with pytest.raises(UserError, match=rf"router={router} .*is not the mean over its parts"):
            check_batch_split(with_losses(router), tiny_stream(), settings)
    else:
        check_batch_split(with_losses(router), tiny_stream(), settings)
