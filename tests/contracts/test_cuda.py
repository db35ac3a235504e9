"""Every method of conf/method on a CUDA device; its random numbers are drawn on the CPU, so that
both give the same.
"""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from smope.streams.stream import Stream
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream, uneven_source

from .conftest import every_method, make_method

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

Precision = Literal["float32", "bfloat16", "float16", "float64"]


def fitted(name: str, stream: Stream, device: str, precision: Precision) -> Trainer:
    settings = tiny_settings(device=device, precision=precision)
    trainer = Trainer(
        make_method(name, tiny_backbone(), 4), stream, settings, seed=0, device=torch.device(device)
    )
    trainer.fit()
    return trainer


@every_method
def test_the_numbers_are_those_of_a_cpu(name: str, stream: Stream) -> None:
    there, here = (fitted(name, stream, device, "float64") for device in ("cuda", "cpu"))
    assert there.history.accuracy_matrix == here.history.accuracy_matrix
    state, expected = there.method.trained_state(), here.method.trained_state()
    for key, value in expected.items():
        assert state[key].device.type == "cuda"
        torch.testing.assert_close(state[key].cpu(), value, rtol=1e-5, atol=1e-7)


def test_batches_of_images_on_the_device_are_those_that_are_loaded() -> None:
    """To the bit, with crops and flips of pictures of several sizes."""
    stream = tiny_stream(source=uneven_source(), crop_scale=[0.1, 1.0], flip=True, eval_crop=0.875)
    task, batches = stream.tasks[0], []
    for on in (False, True):
        settings = tiny_settings(device="cuda", images_on_device=on)
        method = make_method("ncm", tiny_backbone(), 4)
        trainer = Trainer(method, stream, settings, seed=0, device=torch.device("cuda"))
        loaded = (trainer.loader.shuffled(task.train, 0), trainer.loader.of_test(task.test))
        batches.append([batch for each in loaded for batch in each])
    for (images, labels), (own_images, own_labels) in zip(*batches, strict=True):
        assert own_images.device.type == own_labels.device.type == "cuda"
        assert torch.equal(images, own_images) and torch.equal(labels, own_labels)


@every_method
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_learns_in_less_precision(name: str, precision: Precision, stream: Stream) -> None:
    trainer = fitted(name, stream, "cuda", precision)
    assert sum(trainer.history.accuracy_matrix[-1]) / 2 > 0.6, "four classes: chance is 0.25"
    state = trainer.method.trained_state().values()
    assert all(
        value.isfinite().all() and value.dtype not in (torch.bfloat16, torch.float16)
        for value in state
    )
