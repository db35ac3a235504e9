"""A training that was broken off, anywhere, and taken up again from its last checkpoint ends as if
it had not been.
"""

from __future__ import annotations

import csv
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Batches, Method, Phase, TaskSpan
from smope.methods.finetune import Finetune
from smope.storage.run_directory import RunDirectory
from smope.streams.selection import UnresampledImages
from smope.streams.stream import Stream
from smope.training import checkpointing, task_end
from smope.training.checkpoint import last_checkpoint, list_checkpoints, read_checkpoint
from smope.training.history import History
from smope.training.interruption import Interrupted
from smope.training.phase import RunningPhase
from smope.training.trainer import Trainer
from tests.contracts.conftest import (
    ROUTERS,
    SHALLOW,
    VARIANTS,
    make_router,
    make_shallow_method,
)
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream

CPU = torch.device("cpu")
# SMoPE's steps: 3 dense and 12 sparse ones in the first task, 12 in the second; 3 to an epoch.
MID_EPOCH, EPOCH_END, DENSE_END, SPARSE_END, SECOND_TASK = 5, 6, 3, 15, 20


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Drawing(Finetune):
    """Draws from every global generator, at every chance."""

    def begin_task(self, task: TaskSpan) -> None:
        with torch.no_grad():
            self.classifier.weight += torch.rand(1) + random.gauss(0, 0.1) + numpy.random.rand()

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        return [Phase("one", 1), Phase("two", epochs)]

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        factor = random.gauss(1, 0.1) + numpy.random.standard_normal() / 10
        logits = self.classify(F.dropout(self.features(images), 0.3))
        return {"cross_entropy": factor * F.cross_entropy(logits, labels)}

    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        self.classifier.bias += torch.rand(4) + random.random() + numpy.random.rand()


def make(name: str) -> Method:
    """A method by its name; `router=NAME` is smope with that router."""
    torch.manual_seed(0)
    if name == "drawing":
        return Drawing(tiny_backbone(depth=SHALLOW), 4, align=True)
    if name.startswith("router="):
        return make_shallow_method("smope", router=name.removeprefix("router="))
    return make_shallow_method(name)


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tiny_stream(crop_scale=[0.3, 1.0], flip=True)


def trainer_of(
    name: str, stream: Stream, directory: RunDirectory | None, **changes: Any
) -> Trainer:
    return Trainer(
        make(name), stream, tiny_settings(**changes), seed=0, device=CPU, directory=directory
    )


def taken_up(name: str, stream: Stream, directory: RunDirectory, **changes: Any) -> Trainer:
    """Another trainer, at the run's last checkpoint."""
    trainer = trainer_of(name, stream, directory, **changes)
    checkpoint = last_checkpoint(directory, lambda _, error: pytest.fail(str(error)))
    if checkpoint is not None:
        trainer.resume(checkpoint)
    directory.drop_metrics_after(trainer.history.steps)
    return trainer


def rows(directory: RunDirectory) -> list[dict[str, str]]:
    if not directory.metrics.exists():
        return []
    with directory.metrics.open(newline="") as file:
        return [{**row, "images_per_second": ""} for row in csv.DictReader(file)]


def result(trainer: Trainer) -> tuple[dict[str, Tensor], History]:
    history = History(**trainer.history.as_dict())
    history.seconds, history.seconds_per_task, history.peak_memory = {}, [], {}
    return trainer.method.trained_state(), history


Whole = Callable[..., tuple[dict[str, Tensor], History, list[dict[str, str]]]]


@pytest.fixture(scope="module")
def whole(stream: Stream, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """State, history and metrics of a training without a break; made once."""
    made: dict[str, Any] = {}

    def train(name: str, **changes: Any) -> Any:
        key = f"{name} {changes}"
        if key not in made:
            directory = RunDirectory.create(tmp_path_factory.mktemp("whole") / "run", "seed: 0\n")
            trainer = trainer_of(name, stream, directory, **changes)
            trainer.fit()
            made[key] = *result(trainer), rows(directory)
        return made[key]

    return train


def assert_same(trainer: Trainer, directory: RunDirectory, expected: Any) -> None:
    state, history = result(trainer)
    assert state.keys() == expected[0].keys()
    assert [key for key in state if not torch.equal(state[key], expected[0][key])] == []
    assert history == expected[1]
    assert rows(directory) == expected[2]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "seed: 0\n")


def during(owner: Any, name: str, number: int, action: Callable[[], object]) -> Any:
    """A patch: `action` at the beginning of the `number`-th call, counted from 1, of a method or
    function.
    """
    real, calls = getattr(owner, name), iter(range(1, 10_000))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            action()
        return real(*arguments, **options)

    return owner, name, counted


def kill() -> None:
    raise Killed


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def broken_off(trainer: Trainer, patch: Any, how: type[BaseException]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, trainer.interruption.watching():
        monkeypatch.setattr(*patch)
        with pytest.raises(how):
            trainer.fit()


def takes_steps(name: str) -> bool:
    """Whether a method is trained by the loop's steps."""
    return bool(make(name).phases(TaskSpan(0, 0, 2), 1))


STOPS = [("drawing", n) for n in (1, MID_EPOCH, EPOCH_END, DENSE_END, SPARSE_END, SECOND_TASK)]
STOPS += [("smope", n) for n in (DENSE_END, MID_EPOCH, SECOND_TASK)]
STOPS += [
    (f"router={name}", SECOND_TASK) for name in ROUTERS if make_router(name).random_in_training
]
STOPS += [(f"router={name}", SECOND_TASK) for name in ("cosine", "hash", "soft", "token")]
STOPS += [(name, MID_EPOCH) for name in VARIANTS if name != "smope" and takes_steps(name)]


@pytest.mark.parametrize(("name", "step"), STOPS)
def test_stopped_by_a_signal_in_a_step(
    name: str, step: int, stream: Stream, directory: RunDirectory, whole: Whole
) -> None:
    first = trainer_of(name, stream, directory)
    broken_off(first, during(RunningPhase, "step", step, terminate), Interrupted)
    last = read_checkpoint(list_checkpoints(directory)[-1])
    assert last.within is not None
    assert last.within.steps == (step if step <= SPARSE_END else step - SPARSE_END), (
        "the step was finished, then saved"
    )
    second = taken_up(name, stream, directory)
    second.fit()
    assert_same(second, directory, whole(name))


@pytest.mark.parametrize("step", [2, 4, 9, 10, 16, 17, 27])
def test_killed_in_a_step(step: int, stream: Stream, directory: RunDirectory, whole: Whole) -> None:
    """With a checkpoint every other step, so that most of them lie within an epoch."""
    first = trainer_of("smope", stream, directory, checkpoint_steps=2)
    broken_off(first, during(RunningPhase, "step", step, kill), Killed)
    second = taken_up("smope", stream, directory, checkpoint_steps=2)
    second.fit()
    assert_same(second, directory, whole("smope"))


PLACES = [
    (Method, "begin_phase"),
    (Drawing, "end_task"),
    (task_end, "record_class_statistics"),
    (task_end, "align_classifier"),
    (Trainer, "_evaluate"),
    (Trainer, "accuracy"),
    (checkpointing, "save_checkpoint"),
    (RunDirectory, "append_metrics"),
    (History, "end_task"),
]


@pytest.mark.parametrize("how", [kill, terminate])
@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
def test_stopped_between_steps(
    owner: Any,
    name: str,
    how: Callable[[], None],
    stream: Stream,
    directory: RunDirectory,
    whole: Whole,
) -> None:
    """The second time that the program comes there, so that the first task may be done already."""
    number = 1 if name == "align_classifier" else 2
    first = trainer_of("drawing", stream, directory)
    broken_off(first, during(owner, name, number, how), Killed if how is kill else Interrupted)
    second = taken_up("drawing", stream, directory)
    second.fit()
    assert_same(second, directory, whole("drawing"))


def test_stopped_again_and_again(stream: Stream, directory: RunDirectory, whole: Whole) -> None:
    """At every third step, and where the second task begins."""
    for _ in range(5):
        broken_off(
            taken_up("drawing", stream, directory),
            during(RunningPhase, "step", 3, terminate),
            Interrupted,
        )
    broken_off(
        taken_up("drawing", stream, directory),
        during(Drawing, "begin_task", 1, terminate),
        Interrupted,
    )
    trainer = taken_up("drawing", stream, directory)
    trainer.fit()
    assert_same(trainer, directory, whole("drawing"))


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_in_every_precision(
    precision: str, stream: Stream, directory: RunDirectory, whole: Whole
) -> None:
    first = trainer_of("smope", stream, directory, precision=precision)
    broken_off(first, during(RunningPhase, "step", MID_EPOCH, terminate), Interrupted)
    trainer = taken_up("smope", stream, directory, precision=precision)
    trainer.fit()
    assert_same(trainer, directory, whole("smope", precision=precision))


def test_with_workers(stream: Stream, directory: RunDirectory, whole: Whole) -> None:
    first = trainer_of("smope", stream, directory, num_workers=1)
    broken_off(first, during(RunningPhase, "step", MID_EPOCH, terminate), Interrupted)
    trainer = taken_up("smope", stream, directory)
    trainer.fit()
    assert_same(trainer, directory, whole("smope"))


def test_the_scaler_of_float16_comes_back(stream: Stream) -> None:
    phases = []
    for _ in range(2):
        method = make("finetune")
        span = trainer_of("finetune", stream, None).spans[0]
        phases.append(
            RunningPhase(method, span, Phase("train", 1), tiny_settings(), CPU, first=0, steps=3)
        )
        phases[-1]._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9, growth_interval=2)
    first, second = phases
    for _ in range(3):
        first.step(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
    tensors, scaler = first.state()
    assert scaler["scale"] == 2.0**10
    second.load(tensors, scaler, 3)
    assert second.state()[1] == scaler
    assert second.position == 3


def places(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Tasks done and steps into the next, of each checkpoint that a training writes."""
    written = []
    save = checkpointing.save_checkpoint

    def watched(*arguments: Any) -> Path:
        path = save(*arguments)
        tasks, _, steps = path.stem.partition("-")
        written.append((int(tasks), int(steps)))
        return path

    monkeypatch.setattr(checkpointing, "save_checkpoint", watched)
    trainer.fit()
    return written


ENDS = [(0, 3), (0, 15), (1, 0), (1, 12), (2, 0)]


def test_when_checkpoints_are_written(
    stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name, changes in (
        ("ends", {"checkpoint_minutes": None}),
        ("seldom", {"checkpoint_minutes": 60.0}),
        ("steps", {"checkpoint_minutes": None, "checkpoint_steps": 5}),
        ("always", {"checkpoint_minutes": 1e-9}),
    ):
        directory = RunDirectory.create(tmp_path / name, "seed: 0\n")
        with monkeypatch.context() as patch:
            found[name] = places(trainer_of("smope", stream, directory, **changes), patch)
    assert found["ends"] == found["seldom"] == ENDS
    assert found["steps"] == sorted({*ENDS, (0, 5), (0, 10), (1, 5), (1, 10)})
    assert found["always"] == [
        *((0, n) for n in range(1, 16)),
        *((1, n) for n in range(13)),
        (2, 0),
    ]


def test_a_damaged_checkpoint_costs_the_way_from_the_one_before(
    stream: Stream, directory: RunDirectory, whole: Whole
) -> None:
    first = trainer_of("smope", stream, directory, checkpoint_steps=2)
    broken_off(first, during(RunningPhase, "step", 9, kill), Killed)
    list_checkpoints(directory)[-1].write_bytes(b"")
    told = []
    checkpoint = last_checkpoint(directory, lambda path, _: told.append(path.stem))
    assert checkpoint is not None
    assert checkpoint.within is not None
    assert (told, checkpoint.within.steps) == (["000-00000008"], 6)
    second = trainer_of("smope", stream, directory)
    second.resume(checkpoint)
    directory.drop_metrics_after(second.history.steps)
    second.fit()
    assert_same(second, directory, whole("smope"))


def test_times_add_up(stream: Stream, directory: RunDirectory) -> None:
    """What was spent before the break is part of it."""
    first = trainer_of("smope", stream, directory)
    broken_off(first, during(RunningPhase, "step", MID_EPOCH, terminate), Interrupted)
    spent = read_checkpoint(list_checkpoints(directory)[-1]).history
    assert 0 < spent["seconds"]["train"] == spent["seconds_of_task"]
    second = taken_up("smope", stream, directory)
    second.fit()
    seconds = second.history.seconds
    assert second.history.seconds_per_task[0] > spent["seconds_of_task"]
    assert sum(second.history.seconds_per_task) == pytest.approx(
        seconds["train"] + seconds["align"] + seconds["eval"]
    )


class Diverging(Finetune):
    """Its loss is not a number in the fifth step of the second task."""

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        found = super().losses(images, labels, task)
        self.steps = getattr(self, "steps", 0) + (task.index == 1)
        return {
            name: value * (torch.nan if self.steps == 5 else 1.0) for name, value in found.items()
        }


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loss_that_is_not_finite(precision: str, stream: Stream, directory: RunDirectory) -> None:
    method = Diverging(tiny_backbone(), 4)
    settings = tiny_settings(precision=precision)
    trainer = Trainer(method, stream, settings, seed=0, device=CPU, directory=directory)
    where = r"the loss became nan in step 5 of task 2 \(train, epoch 2, batch 2 of 3\)"
    advice = " or use trainer.precision=float32" if precision == "bfloat16" else ""
    with pytest.raises(UserError, match=rf"{where}; lower trainer\.learning_rate=0\.01{advice}$"):
        trainer.fit()
    assert len(trainer.history.accuracy_matrix) == 1
    checkpoint = read_checkpoint(list_checkpoints(directory)[-1])
    assert checkpoint.within is not None
    assert (checkpoint.tasks_done, checkpoint.within.steps) == (1, 4), "the state before that step"
    assert all(torch.isfinite(value).all() for value in checkpoint.state.values())


def test_an_image_that_becomes_unreadable(
    stream: Stream, directory: RunDirectory, whole: Whole
) -> None:
    """The state is saved; once the image is back, the run continues."""

    def broken() -> None:
        raise UserError("cannot read image b.png: truncated; replace the file or remove it")

    first = trainer_of("smope", stream, directory)
    reading = during(UnresampledImages, "__getitem__", 37, broken)
    broken_off(first, reading, UserError)
    checkpoint = read_checkpoint(list_checkpoints(directory)[-1])
    assert checkpoint.within is not None
    assert checkpoint.within.steps == 4, "eight images to a step"
    second = taken_up("smope", stream, directory)
    second.fit()
    assert_same(second, directory, whole("smope"))


def test_without_a_directory_nothing_is_written(stream: Stream, tmp_path: Path) -> None:
    trainer = Trainer(
        make("finetune"), stream, tiny_settings(checkpoint_steps=1), seed=0, device=CPU
    )
    trainer.fit()
    assert not list(tmp_path.iterdir())
