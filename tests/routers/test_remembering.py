"""Routers with memory inside methods: checkpoints, parts of a batch, two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smope.training.trainer import Trainer
from tests.contracts.conftest import SHALLOW, make_shallow_method
from tests.tiny import tiny_settings, tiny_stream
from tests.two_processes import in_two_processes

REMEMBERING = ("centred", "aux_free")
MEMORY = {"centred": ".mean", "aux_free": ".bias"}


def trained(router: str, method: str = "smope", **changes: Any) -> Trainer:
    settings = tiny_settings(epochs=2, precision="float64", **changes)
    made = make_shallow_method(method, router=router)
    trainer = Trainer(made, tiny_stream(), settings, seed=0, device=torch.device("cpu"))
    trainer.fit()
    return trainer


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.method.trained_state().items()}


def train_all(folder: Path) -> None:
    from smope.distributed import collectives

    for name in REMEMBERING:
        torch.save(state_of(trained(name)), folder / f"{name}-{collectives.rank()}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes("tests.routers.test_remembering:train_all", folder)
    return folder


@pytest.mark.parametrize("router", REMEMBERING)
def test_two_processes_and_parts_of_a_batch_remember_the_same(router: str, two: Path) -> None:
    whole = state_of(trained(router))
    memory = [key for key in whole if key.startswith("routers.") and key.endswith(MEMORY[router])]
    assert len(memory) == SHALLOW - 1 and all(whole[key].any() for key in memory)
    parts = state_of(trained(router, gradient_accumulation_steps=3))
    first, second = (torch.load(two / f"{router}-{rank}.pt") for rank in range(2))
    for other in (parts, first, second):
        assert other.keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["smope", "smope_plus"])
@pytest.mark.parametrize("router", REMEMBERING)
def test_what_classifies_is_saved(router: str, method: str) -> None:
    ours = trained(router, method).method.eval()
    images = torch.rand(5, 3, 32, 32, dtype=torch.float64)
    fresh = make_shallow_method(method, seed=1, router=router).double().eval()
    state = fresh.adopted(ours.inference_state())
    assert f"routers.0{MEMORY[router]}" in state
    fresh.load_state_dict(state, strict=False)
    with torch.no_grad():
        assert torch.equal(fresh(images), ours(images))
