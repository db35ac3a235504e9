"""Streams for methods that learn from frozen features: tasks of new classes, and the same classes in other tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smope.methods.base import Method
from smope.streams.base import Stream
from smope.streams.source import ImageSet, Source
from smope.training.trainer import Trainer
from tests.tiny import tiny_settings, tiny_source, tiny_stream


def dealt(images: ImageSet, tasks: int) -> ImageSet:
    """The images of each class dealt out to so many tasks."""
    return replace(images, tasks=[index // 4 % tasks for index in range(len(images))])


@pytest.fixture(scope="session", params=["new classes", "classes again"])
def stream(request: pytest.FixtureRequest) -> Stream:
    if request.param == "new classes":
        return tiny_stream()
    source = tiny_source(test=6)
    again = Source("again", source.class_names, dealt(source.train, 3), dealt(source.test, 3), ("a", "b", "c"))
    return tiny_stream(source=again, num_tasks=None)


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
    """Features (n, C) in float64 and labels (n,) of every training image of a stream, unaugmented."""

    def collect(method: Method, stream: Stream) -> tuple[Tensor, Tensor]:
        pairs = [task.train_plain[index] for task in stream.tasks for index in range(len(task.train_plain))]
        images = torch.stack([image for image, _ in pairs])
        return method.features(images).double(), torch.tensor([label for _, label in pairs])

    return collect
