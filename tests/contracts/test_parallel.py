"""Every method of conf/method learns the same from batches that two processes divide, or that one
takes in parts.

In float64, where a sum in another order moves the last digits alone: counts and accuracies are
equal, learned numbers to 1e-9. The images are too many for whole batches, and a batch for two equal
shares.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.distributed import collectives
from smope.errors import UserError
from smope.storage.run_directory import RunDirectory
from smope.training.loading import ordered_batches
from smope.training.trainer import Trainer
from tests.tiny import tiny_settings, tiny_source, tiny_stream
from tests.two_processes import in_two_processes

from .conftest import VARIANTS, make_shallow_method

# 22 images a task to learn from, batches of 7, shares of 3 and 4. Where all are seen the last one,
# which two cannot share, is joined to the batch before it, as is the last of 8 test images.
SMALL: dict[str, Any] = {
    "batch_size": 7,
    "eval_batch_size": 7,
    "epochs": 2,
    "precision": "float64",
    "alignment_epochs": 1,
}
IN_CLOSED_FORM = (
    "anacp", "fecam", "klda", "layup", "linear_probe", "ncm", "rgda", "ridge", "slda",
)  # fmt: skip
LEARNS_BY_STEPS = [name for name in VARIANTS if name not in IN_CLOSED_FORM]


def train(name: str, directory: RunDirectory | None, bug: str = "none", **changes: Any) -> Trainer:
    stream = tiny_stream(source=tiny_source(train=11, test=4), crop_scale=[0.3, 1.0], flip=True)
    settings = tiny_settings(**{**SMALL, **changes})
    # with the threshold of its paper, outliers as few as here would add nothing to OVOR's loss
    method = make_shallow_method(name, authors_bug=bug, outlier_threshold=0.0)
    trainer = Trainer(
        method, stream, settings, seed=0, device=torch.device("cpu"), directory=directory
    )
    trainer.fit()
    return trainer


def rows(directory: RunDirectory) -> list[dict[str, float]]:
    """metrics.csv without how long it took."""
    if not directory.metrics.exists():
        return []
    with directory.metrics.open(newline="") as file:
        return [
            {
                key: float(value)
                for key, value in row.items()
                if value and key not in ("phase", "images_per_second")
            }
            for row in csv.DictReader(file)
        ]


def outcome(trainer: Trainer, directory: RunDirectory) -> dict[str, Any]:
    history = trainer.history
    counted = (history.images_trained, history.images_evaluated, history.steps)
    state = {key: value.clone() for key, value in trainer.method.trained_state().items()}
    return {
        "state": state,
        "matrix": history.accuracy_matrix,
        "counted": counted,
        "rows": rows(directory),
        "experts": history.expert_use,
    }


def train_all(folder: Path) -> None:
    """In each of two processes: every method, what came of it in a file; the first one has the run
    directory.
    """
    for name in VARIANTS:
        directory = RunDirectory(folder / name)
        if collectives.is_first():
            RunDirectory.create(directory.path, "seed: 0\n")
        trainer = train(name, directory if collectives.is_first() else None)
        torch.save(outcome(trainer, directory), folder / f"{name}-{collectives.rank()}.pt")
    torch.save(in_float32(folder), folder / f"float32-{collectives.rank()}.pt")
    check_exchanges()


def in_float32(folder: Path) -> dict[str, Any]:
    return outcome(
        train("smope", None, precision="float32", epochs=1), RunDirectory(folder / "not there")
    )


def check_exchanges() -> None:
    """What two processes tell each other, with shares of different sizes."""
    own = torch.tensor(
        [[1.0], [2.0]] if collectives.rank() else [[5.0]], dtype=torch.float64, requires_grad=True
    )
    whole = collectives.whole_batch(own)
    assert collectives.gathered(own).tolist() == whole.tolist() == [[5.0], [1.0], [2.0]]
    (whole.square().sum() * len(own) / 3).backward()
    torch.testing.assert_close(own.grad, 2 * own.detach())
    assert collectives.share(list("abcde")) == list("cde" if collectives.rank() else "ab")
    assert collectives.largest([collectives.rank(), 7 - collectives.rank()]) == [1, 7]
    assert collectives.from_first({"a": collectives.rank()}) == {"a": 0}
    flags = torch.tensor([collectives.rank() == 0, True])
    collectives.copy_from_first(
        [flags, numbers := torch.full((2, 3), collectives.rank(), dtype=torch.int64).T]
    )
    assert flags.all() and not numbers.any()
    collectives.require_same({"stream.root": "same"})
    with pytest.raises(
        UserError,
        match=r"stream.root: what process 1 has there is not what process 0 has; give all",
    ):
        collectives.require_same({"stream.root": str(collectives.rank())})
    with collectives.alone():
        assert collectives.world() == 1 and collectives.gathered(own).tolist() == own.tolist()
    for changes, message in REFUSED:
        with pytest.raises(UserError, match=message):
            train(changes.pop("name"), None, **changes)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"name": "finetune", "batch_size": 3, "gradient_accumulation_steps": 2},
        "batch_size=3 must be at least 4, ",
    ),
    ({"name": "finetune", "eval_batch_size": 1}, "trainer.eval_batch_size=1 must be at least 2"),
    (
        {"name": "l2p", "bug": "vote"},
        "method.authors_bug=vote: images depend on the others of their batch, which 2 pr",
    ),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes("tests.contracts.test_parallel:train_all", folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """name -> what comes of it in a single process; made once."""
    made: dict[str, Any] = {}

    def result(name: str) -> dict[str, Any]:
        if name not in made:
            directory = RunDirectory.create(tmp_path_factory.mktemp("one") / name, "seed: 0\n")
            made[name] = outcome(train(name, directory), directory)
        return made[name]

    return result


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["matrix"] == expected["matrix"]
    assert found["counted"] == expected["counted"]
    for use, other in zip(found["experts"], expected["experts"], strict=True):
        assert use == {**other, "margin": pytest.approx(other["margin"], rel=1e-9)}
    assert found["state"].keys() == expected["state"].keys()
    for key, value in expected["state"].items():
        assert_close(found["state"][key], value, key)
    assert [row.keys() for row in found["rows"]] == [row.keys() for row in expected["rows"]]
    for row, other in zip(found["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(other, rel=1e-9)


def assert_close(found: Tensor, expected: Tensor, key: str) -> None:
    if not expected.is_floating_point():
        assert torch.equal(found, expected), key
        return
    # sums over images grow with them
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    tolerance = 1e-5 if expected.dtype == torch.float32 else 1e-9
    torch.testing.assert_close(
        found, expected, rtol=0, atol=tolerance * scale, msg=lambda text: f"{key}: {text}"
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_learn_what_one_does(name: str, two: Path, one: Any) -> None:
    first, second = (torch.load(two / f"{name}-{rank}.pt") for rank in range(2))
    assert_same(first, one(name))
    assert all(torch.equal(first["state"][key], value) for key, value in second["state"].items())
    assert first["matrix"] == second["matrix"]


def test_in_float32_they_learn_the_same_within_noise(two: Path, tmp_path: Path) -> None:
    """As the network is trained unless told otherwise: sums in another order, which training
    amplifies.
    """
    found, expected = torch.load(two / "float32-0.pt"), in_float32(tmp_path)
    assert found["counted"] == expected["counted"]
    assert found["matrix"][-1] == pytest.approx(expected["matrix"][-1], abs=0.13)
    for key, value in expected["state"].items():
        # of counts: images that rounding sends to another expert
        noise = 1e-3 if value.is_floating_point() else 2
        torch.testing.assert_close(
            found["state"][key].double(),
            value.double(),
            rtol=0,
            atol=noise,
            msg=lambda text, key=key: f"{key}: {text}",
        )


@pytest.mark.parametrize("name", LEARNS_BY_STEPS)
def test_a_batch_in_parts_teaches_the_same(name: str, one: Any, tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "seed: 0\n")
    if make_shallow_method(name).needs_whole_batch():
        with pytest.raises(
            UserError,
            match=r"gradient_accumulation_steps=3: with method\.\w+=.+ the loss of a batch",
        ):
            train(name, directory, gradient_accumulation_steps=3)
        return
    assert_same(
        outcome(train(name, directory, gradient_accumulation_steps=3), directory), one(name)
    )


@pytest.mark.parametrize("name", ["l2p", "dualprompt", "hide", "norga"])
def test_what_mixes_images_is_not_taken_in_parts(name: str) -> None:
    with pytest.raises(
        UserError,
        match=r"with method\.\w+=\S+ the loss of a batch is not the mean over its parts",
    ):
        train(name, None, bug="reshape", gradient_accumulation_steps=2)


def test_batches_in_order_leave_nobody_without_an_image() -> None:
    assert [len(batch) for batch in ordered_batches(8, 7, 2)] == [8]
    assert [len(batch) for batch in ordered_batches(9, 7, 2)] == [7, 2]
    assert [len(batch) for batch in ordered_batches(8, 7)] == [7, 1]
    assert [index for batch in ordered_batches(22, 4, 3) for index in batch] == list(range(22))


def test_what_learns_by_steps_is_found() -> None:
    for name in VARIANTS:
        trains = list(make_shallow_method(name).parameter_groups(0.1))
        assert bool(trains) == (name in LEARNS_BY_STEPS) or name == "linear_probe", name
