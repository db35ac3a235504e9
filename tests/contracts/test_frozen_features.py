"""Features of the frozen backbone are computed once for images that never change; no number shows
it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.backbones.known_features import rows_within
from smope.backbones.vit import Backbone
from smope.backbones.wrapping import BlockWrapper
from smope.methods.base import Method
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from smope.training import frozen_features
from smope.training.checkpoint import last_checkpoint
from smope.training.frozen_work import FrozenWork, count_frozen_work
from smope.training.loading import TaskLoader
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream

from .conftest import METHODS, every_method, make_shallow_method

CPU = torch.device("cpu")
TWO_PASSES = ("coda", "deep_l2p", "dualprompt", "hide", "l2p", "norga", "vq")
ON_FEATURES = ("fecam", "finetune", "linear_probe", "ridge", "slda")
AUGMENTED = {"crop_scale": (0.5, 1.0), "flip": True}


@pytest.fixture(scope="module")
def augmented() -> Stream:
    return tiny_stream(num_tasks=2, **AUGMENTED)


def trainer_of(name: str, stream: Stream, path: Path | None = None, **changes: Any) -> Trainer:
    settings = tiny_settings(**{"epochs": 3, "alignment_epochs": 1, **changes})
    directory = None if path is None else RunDirectory.create(path, "seed: 0\n")
    method = make_shallow_method(name)
    return Trainer(method, stream, settings, seed=0, device=CPU, directory=directory)


def run(name: str, stream: Stream, path: Path | None = None, **changes: Any) -> dict[str, Any]:
    """All numbers of a run, and those of its reference."""
    trainer = trainer_of(name, stream, path, **changes)
    trainer.fit()
    accuracy, reference = trainer.history.accuracy_matrix, trainer.reference_matrix()
    return {"accuracy": accuracy, "reference": reference, **trainer.method.trained_state()}


@contextmanager
def computed_anew() -> Iterator[None]:
    """Nothing is remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen_features.FrozenFeatures, "_applies", lambda *_: False)
        patch.setattr("smope.training.trainer.compute_ahead", lambda *_: None)
        yield


@contextmanager
def bare_passes() -> Iterator[list[Tensor]]:
    """The batches that pass the backbone without prompts."""
    forward, passes = Backbone.forward, list[Tensor]()

    def counting(backbone: Backbone, images: Tensor, *rest: Any, **options: Any) -> Tensor:
        wrapped = any(isinstance(block, BlockWrapper) for block in backbone.vit.blocks)
        if not wrapped and all(
            getattr(block.attn, "prefix", None) is None for block in backbone.vit.blocks
        ):
            passes.append(images)
        return forward(backbone, images, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "forward", counting)
        yield passes


def images_in(passes: list[Tensor]) -> int:
    return sum(map(len, passes))


def assert_equal(one: dict[str, Any], other: dict[str, Any], rounding: bool = False) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if not isinstance(value, Tensor):
            assert value == other[key], key
        elif rounding:
            torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-5, msg=key)
        else:
            assert torch.equal(value, other[key]), key


@dataclass(frozen=True)
class Watched:
    """A run: its numbers, the images that passed the backbone without prompts, whether features
    were known in training, and of how many images they were kept.
    """

    numbers: dict[str, Any]
    state: dict[str, Tensor]
    passed: int
    known: bool
    kept: int


def watched(trainer: Trainer) -> Watched:
    shuffled, known = TaskLoader.shuffled, list[Any]()

    def watching(loader: TaskLoader, *arguments: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in shuffled(loader, *arguments):
            yield batch
            known.append(trainer.method.backbone.known)

    with pytest.MonkeyPatch.context() as patch, bare_passes() as passes:
        patch.setattr(TaskLoader, "shuffled", watching)
        trainer.fit()
    return Watched(
        {"accuracy": trainer.history.accuracy_matrix, "reference": trainer.reference_matrix()},
        trainer.method.trained_state(),
        images_in(passes),
        any(features is not None for features in known),
        sum(int((rows._batch >= 0).sum()) for rows in trainer.frozen._sets.values()),
    )


@pytest.fixture(scope="module")
def runs(stream: Stream, augmented: Stream) -> Callable[..., tuple[FrozenWork, Watched, Watched]]:
    """(name, whether images are augmented) -> what is counted before a run, the run, and the run
    that remembers nothing; made once.
    """

    @cache
    def both(name: str, augments: bool) -> tuple[FrozenWork, Watched, Watched]:
        images = augmented if augments else stream
        trainer = trainer_of(name, images)
        counted = count_frozen_work(trainer)
        remembered = watched(trainer)
        with computed_anew():
            anew = watched(trainer_of(name, images))
        return counted, remembered, anew

    return both


@every_method
def test_no_number_changes(name: str, runs: Any) -> None:
    _, remembered, anew = runs(name, augments=False)
    assert_equal(remembered.numbers, anew.numbers)
    assert_equal(remembered.state, anew.state, rounding=True)


@every_method
def test_augmented_images_are_always_computed(name: str, runs: Any) -> None:
    _, remembered, anew = runs(name, augments=True)
    assert not remembered.known
    assert_equal(remembered.state, anew.state)


@pytest.mark.parametrize("name", TWO_PASSES)
def test_the_query_of_an_image_is_computed_once(name: str, stream: Stream) -> None:
    """20 test images in two tasks; in training 48 images, in 3 epochs of 24 a task."""
    trainer = trainer_of(name, stream, reference="none")
    with bare_passes() as passes:
        trainer.fit()
    trained = sum(len(task.train) for task in stream.tasks)
    tested = sum(len(task.test) for task in stream.tasks)
    assert images_in(passes) == trained + tested
    with bare_passes() as passes:
        assert trainer_of(name, stream).reference_matrix() is not None
    assert images_in(passes) == trained + tested


@pytest.mark.parametrize("augments", [False, True], ids=["plain", "augmented"])
@every_method
def test_what_is_saved_is_counted_before(name: str, augments: bool, runs: Any) -> None:
    """Passes through the frozen backbone that a run does not take, and images whose features it
    keeps.
    """
    counted, remembered, anew = runs(name, augments=augments)
    if name in TWO_PASSES:
        saved = counted.in_training + counted.in_statistics + counted.in_evaluation
        assert anew.passed - remembered.passed == saved > 0
    assert counted.images == remembered.kept


@pytest.mark.parametrize("name", [*TWO_PASSES, *ON_FEATURES])
def test_the_reference_computes_only_what_the_run_has_not(
    name: str, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(name, stream)
    trainer.fit()
    monkeypatch.setattr("smope.training.loading.load", lambda *_: pytest.fail("read an image"))
    with bare_passes() as passes:
        matrix = trainer.reference_matrix()
    assert passes == []
    monkeypatch.undo()
    assert matrix is not None and matrix == trainer_of(name, stream).reference_matrix()


@pytest.mark.parametrize("name", ["coda", "finetune", "l2p"])
def test_parts_of_a_batch_are_known_too(name: str, stream: Stream) -> None:
    changes = {"gradient_accumulation_steps": 2, "reference": "none"}
    with bare_passes() as passes:
        trainer_of(name, stream, **changes).fit()
    assert images_in(passes) == sum(len(task.train) + len(task.test) for task in stream.tasks)


def test_which_methods_read_features_of_the_frozen_backbone_in_training(stream: Stream) -> None:
    """For one that says so and does not, features would be computed for nothing."""
    reading = set()
    for name in METHODS:
        trainer = trainer_of(name, stream)
        phases = trainer.phases(trainer.spans[0])
        reading |= {name for phase in phases if trainer.method.reads_frozen_features(phase)}
    assert reading == {*TWO_PASSES, "finetune"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("where", ["in a file", "nowhere, since the disk is full"])
def test_beyond_the_memory_they_are_in_a_file(
    precision: str, where: str, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = run("coda", stream, precision=precision)
    monkeypatch.setattr("smope.training.feature_store.BYTES_IN_MEMORY", 1500)  # of 8,704
    temporary_file, opened = tempfile.TemporaryFile, list[Path]()

    def open_file(dir: Path) -> Any:
        opened.append(dir)
        if where != "in a file":
            raise OSError(28, "No space left on device")
        return temporary_file(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", open_file)
    elsewhere = run("coda", stream, tmp_path / "run", precision=precision)
    assert set(opened) == {tmp_path / "run"} and (len(opened) == 1) == (where == "in a file")
    assert_equal(in_memory, elsewhere, rounding=where != "in a file")


@pytest.mark.parametrize("name", ["coda", "finetune", "hide", "joint"])
def test_a_resumed_run_computes_the_same(name: str, stream: Stream, tmp_path: Path) -> None:
    """Interrupted in the second task, in the middle of an epoch."""
    whole = trainer_of(name, stream)
    whole.fit()
    first = trainer_of(name, stream, tmp_path / "run", checkpoint_steps=4)
    write = first.checkpoints.write

    def stop_within(directory: Any, history: Any, context: Any, running: Any) -> None:
        write(directory, history, context, running)
        if running is not None and running.span.index == 1 and running.position == 4:
            raise KeyboardInterrupt

    first.checkpoints.write = stop_within
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    checkpoint = last_checkpoint(
        RunDirectory.open(tmp_path / "run"), lambda _, error: pytest.fail(str(error))
    )
    assert checkpoint is not None
    resumed = trainer_of(name, stream)
    resumed.resume(checkpoint)
    resumed.fit()
    assert_equal(whole.method.trained_state(), resumed.method.trained_state())
    assert whole.history.accuracy_matrix == resumed.history.accuracy_matrix


def test_a_method_that_wraps_blocks_itself_gets_its_own_features(stream: Stream) -> None:
    """Features are remembered for those who ask for the frozen backbone's alone."""

    class Shifted(Method):
        def __init__(self) -> None:
            super().__init__(tiny_backbone(), 4, align=False)
            self.shift = torch.nn.Parameter(torch.zeros(32))

        def features(self, images: Tensor) -> Tensor:
            return super().features(images) + self.shift

        def prompt_parameters(self) -> list[torch.nn.Parameter]:
            return [self.shift]

    method = Shifted()
    assert not method.features_are_the_backbones
    Trainer(method, stream, tiny_settings(epochs=2), seed=0, device=CPU).fit()
    assert method.backbone.known is None


def test_rows_of_a_batch() -> None:
    batch = torch.rand(6, 3, 4, 4)
    assert rows_within(batch, batch) == slice(0, 6)
    for parts in (1, 2, 4):
        rows = [rows_within(part, batch) for part in batch.tensor_split(parts)]
        assert [len(range(6)[part]) for part in rows if part] == [
            len(part) for part in batch.tensor_split(parts)
        ]
    others = (batch.flip(0), batch[::2], batch[:, :, :2], batch.clone(), batch[:3].half())
    assert [rows_within(other, batch) for other in others] == [None] * 5
