"""A stream that continues one whose images are elsewhere: its next task, learned from new images.

The earlier tasks have labels and no images. Labels and the numbers of images go on from those of
the earlier tasks, so that training draws what it would have drawn if the stream had held the new
images from the start, in the order of its tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from smope.streams.pixels.transforms import Evaluation, Training
from smope.streams.selection import Selection
from smope.streams.source import ImageSet
from smope.streams.stream import Stream, Task, import_avalanche

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages


@dataclass(frozen=True)
class EarlierTask:
    """A task that was learned: its labels, and how many training images it had."""

    classes: tuple[int, ...]
    images: int


@dataclass(frozen=True)
class NewImages:
    """The images of the next task.

    images: with class ids.
    labels: the label of each class id.
    content_hash: SHA-256 (hex) of the images with their classes.
    """

    images: ImageSet
    labels: Sequence[int]
    content_hash: str


def next_task(
    new: NewImages,
    earlier: Sequence[EarlierTask],
    class_names: Sequence[str],
    training: Training,
    *,
    seed: int,
) -> Stream:
    """The stream of the earlier tasks and the next one.

    Args:
        new: the images of the next task; they are also its test images.
        earlier: the tasks learned so far.
        class_names: of all labels.
        training: how training images are shown; evaluation crops as it says.
        seed: of the stream that is continued.
    """
    import_avalanche()
    from smope.streams.task_images import TaskImages, Transforms

    transforms = Transforms(training, Evaluation(training.image_size, training.eval_crop))
    labels = [new.labels[int(target)] for target in new.images.targets]
    before = sum(task.images for task in earlier)
    indices = range(len(new.images))
    images = TaskImages(Selection(new.images, indices, labels, seed, before), transforms, "train")
    nothing = images.choose([])
    parts = [(task.classes, nothing) for task in earlier] + [(tuple(sorted({*labels})), images)]
    tasks = tuple(
        _task(index, classes, part, class_names) for index, (classes, part) in enumerate(parts)
    )
    return Stream(
        name="new images",
        class_order=tuple(range(len(class_names))),
        class_names=tuple(class_names),
        tasks=tasks,
        content_hash=new.content_hash,
        benchmark=_benchmark(tasks[-1]),
    )


def evaluation_images(images: ImageSet, training: Training) -> TaskImages:
    """Images through the evaluation transform.

    Args:
        images: with labels instead of class ids.
        training: how training images are shown; evaluation crops as it says.
    """
    import_avalanche()
    from smope.streams.task_images import TaskImages, Transforms

    transforms = Transforms(training, Evaluation(training.image_size, training.eval_crop))
    labels = [int(target) for target in images.targets]
    return TaskImages(Selection(images, range(len(images)), labels, 0), transforms, "eval")


def _task(
    index: int, classes: tuple[int, ...], images: TaskImages, class_names: Sequence[str]
) -> Task:
    return Task(
        index=index,
        name=f"task {index + 1}",
        classes=classes,
        class_names=tuple(class_names[label] for label in classes),
        train=images,
        train_plain=images.eval(),
        test=images.eval(),
    )


def _benchmark(task: Task) -> Any:
    """Avalanche's scenario of the next task alone."""
    from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets

    with torch.random.fork_rng(devices=[]):
        return benchmark_from_datasets(train=[task.train], test=[task.test])
