"""Streams for methods that learn from frozen features: tasks of new classes, and the same classes
in other tasks.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smope.methods.base import Method
from smope.streams.stream import Stream
from smope.training.trainer import Trainer
from tests.tiny import shades, tiny_settings, tiny_source, tiny_stream


@pytest.fixture(scope="session", params=["new classes", "classes again"])
def stream(request: pytest.FixtureRequest) -> Stream:
    if request.param == "new classes":
        return tiny_stream()
    return tiny_stream(source=shades(tiny_source(test=6), 3), num_tasks=None)


@pytest.fixture
def learn() -> Callable[[Method, Stream], Trainer]:
    """Takes a method through a stream."""

    def fit(method: Method, stream: Stream) -> Trainer:
        trainer = Trainer(method, stream, tiny_settings(), seed=0, device=torch.device("cpu"))
        trainer.fit()
        return trainer

    return fit


@pytest.fixture
def all_features() -> Callable[[Method, Stream], tuple[Tensor, Tensor]]:
    """Features (n, C) in float64 and labels (n,) of every training image of a stream,
    unaugmented.
    """

    def collect(method: Method, stream: Stream) -> tuple[Tensor, Tensor]:
        pairs = [
            task.train_plain[index]
            for task in stream.tasks
            for index in range(len(task.train_plain))
        ]
        images = torch.stack([image for image, _ in pairs])
        return method.features(images).double(), torch.tensor([label for _, label in pairs])

    return collect
