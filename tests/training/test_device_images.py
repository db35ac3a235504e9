"""Images on the device: the same batches, the same numbers, and when they are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from smope.distributed import collectives
from smope.errors import UserError
from smope.methods.smope import SMoPE
from smope.routers.topk import TopK
from smope.storage.run_directory import RunDirectory
from smope.streams.pixels import transforms
from smope.streams.source import ImageSet, Source
from smope.streams.stream import Stream
from smope.training import device_images
from smope.training.checkpoint import last_checkpoint
from smope.training.device_images import DeviceImages, decoded_bytes
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_source, tiny_stream, uneven_source
from tests.two_processes import in_two_processes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AUGMENTED: dict[str, Any] = {"crop_scale": [0.1, 1.0], "flip": True, "eval_crop": 0.875}


def trainer_of(stream: Stream, on: bool, path: Path | None = None, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    method = SMoPE(tiny_backbone(), 4, TopK(2), num_experts=4)
    settings = tiny_settings(**{"epochs": 2, "images_on_device": on, **changes})
    directory = RunDirectory(path) if path else None
    if path and collectives.is_first():
        directory = RunDirectory.create(path, "seed: 0\n")
    return Trainer(method, stream, settings, seed=0, device=CPU, directory=directory)


def batches_of(trainer: Trainer) -> list[tuple[Tensor, Tensor]]:
    """A training epoch, and all images of a later task, for training and for testing."""
    task, later = trainer.stream.tasks
    loader = trainer.loader
    loader.epoch = 3
    passes = (
        loader.shuffled(task.train, 0),
        loader.in_order(later.train),
        loader.of_test(later.test),
    )
    return [batch for batches in passes for batch in batches]


@pytest.mark.parametrize("options", [{}, AUGMENTED], ids=["plain", "augmented"])
@pytest.mark.parametrize("products", [False, True], ids=["bytes", "products"])
def test_batches_are_equal_to_the_bit(
    options: dict[str, Any], products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a CPU's kernel for bytes, and with the products of accelerators."""
    if products:
        monkeypatch.setattr(
            "smope.training.loading.resample",
            lambda batch, side, dtype: transforms._resample_padded(
                batch.pixels, batch.windows, side, dtype
            ),
        )
    stream = tiny_stream(source=uneven_source(), **options)
    loaded, gathered = (batches_of(trainer_of(stream, on)) for on in (False, True))
    assert len(loaded) == len(gathered) == 3 + 3 + 2
    for (images, labels), (own_images, own_labels) in zip(loaded, gathered, strict=True):
        assert torch.equal(images, own_images) and torch.equal(labels, own_labels)


def test_pixels_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are too many for the memory are copied from the cache, several at once."""
    monkeypatch.setattr("smope.streams.pixels.preload.MEMORY_LIMIT_BYTES", 0)
    monkeypatch.setattr(device_images, "COPIED_AT_ONCE", 3 * 32 * 32)
    files = encoded(tiny_source(), tmp_path / "images")
    stream = tiny_stream(source=files, cache_gb=1.0, cache_dir=str(tmp_path / "cache"), **AUGMENTED)
    assert not stream.tasks[0].train.in_memory
    assert decoded_bytes(stream) == 4 * (12 + 5) * 3 * 32 * 32
    loaded, gathered = (batches_of(trainer_of(stream, on)) for on in (False, True))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(loaded, gathered, strict=True))


def encoded(source: Source, folder: Path) -> Source:
    from dataclasses import replace

    from PIL import Image

    folder.mkdir()

    def files(split: str) -> ImageSet:
        images: ImageSet = getattr(source, split)
        paths = [folder / f"{split}{index}.png" for index in range(len(images))]
        for path, pixels in zip(paths, images.images, strict=True):
            Image.fromarray(numpy.asarray(pixels)).save(path)
        return replace(images, images=paths)

    return replace(source, train=files("train"), test=files("test"))


def outcome(trainer: Trainer) -> dict[str, Any]:
    return {"matrix": trainer.history.accuracy_matrix, **trainer.method.trained_state()}


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        assert same, key


def test_a_resumed_run_has_the_same_numbers(tmp_path: Path) -> None:
    """Interrupted within the second task, and continued with the images elsewhere."""
    stream = tiny_stream(source=uneven_source(), **AUGMENTED)
    whole = trainer_of(stream, False)
    whole.fit()
    first = trainer_of(stream, True, tmp_path / "run", checkpoint_steps=4)
    write = first.checkpoints.write

    def stop_within(directory: Any, history: Any, context: Any, running: Any) -> None:
        write(directory, history, context, running)
        if running is not None and running.span.index == 1 and running.position == 4:
            raise KeyboardInterrupt

    first.checkpoints.write = stop_within
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    for on in (False, True):
        checkpoint = last_checkpoint(
            RunDirectory.open(tmp_path / "run"), lambda _, error: pytest.fail(str(error))
        )
        assert checkpoint is not None
        resumed = trainer_of(stream, on)
        resumed.resume(checkpoint)
        resumed.fit()
        assert_equal(outcome(whole), outcome(resumed))


def train_twice(folder: Path) -> None:
    """In each of two processes."""
    stream = tiny_stream(source=uneven_source(), **AUGMENTED)
    outcomes = []
    for on in (False, True):
        trainer = trainer_of(stream, on)
        trainer.fit()
        assert bool(trainer.loader.on_device.bytes) == on
        outcomes.append(outcome(trainer))
    assert_equal(*outcomes)


def test_two_processes_have_the_same_numbers(tmp_path: Path) -> None:
    in_two_processes("tests.training.test_device_images:train_twice", tmp_path)


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(device_images, "free_memory", lambda device: size)


def test_auto_is_for_cuda_devices_with_much_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = tiny_stream()
    size = decoded_bytes(stream)
    assert size == 4 * (12 + 5) * 3 * 32 * 32
    free(monkeypatch, 8 * size)
    assert DeviceImages("auto", stream, CUDA).bytes == size
    assert DeviceImages("auto", stream, CPU).bytes == 0
    assert DeviceImages(False, stream, CUDA).bytes == 0
    free(monkeypatch, 8 * size - 1)
    assert DeviceImages("auto", stream, CUDA).bytes == 0
    assert DeviceImages(True, stream, CUDA).bytes == size


def test_what_cannot_be_on_the_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free(monkeypatch, 1e5)
    with pytest.raises(UserError, match=r"images take 0\.00 GB, and cpu has 0\.00 GB free; write"):
        trainer_of(tiny_stream(), True)
    monkeypatch.setattr("smope.streams.pixels.preload.MEMORY_LIMIT_BYTES", 0)
    stream = tiny_stream(source=encoded(tiny_source(), tmp_path / "images"))
    with pytest.raises(UserError, match=r"needs all images decoded.*raise stream\.cache_gb, or"):
        trainer_of(stream, True)
    assert DeviceImages("auto", stream, CUDA).bytes == 0
