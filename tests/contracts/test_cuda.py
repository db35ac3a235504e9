"""Every method of conf/method on a CUDA device; its random numbers are drawn on the CPU, so that
both give the same.
"""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from smope.streams.stream import Stream
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings

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
