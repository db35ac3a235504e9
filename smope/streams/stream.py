"""From a source of labelled images to a stream of tasks, carried by an Avalanche scenario.

A source file returns a `Source` (images and the source's own class ids). `build_stream` decodes it,
decides which task each image belongs to (partition.py) and renumbers the labels. The images of each
task become one `TaskImages`, an Avalanche dataset, and Avalanche's experiences hold these objects.
`Task`s are read off the experiences, so training uses the very datasets that `Stream.benchmark`
shows.

Avalanche is imported when the first stream is built and not before, and only the parts that a
stream needs (avalanche_parts.py). Looking at data and predicting from a trained model build no
stream and do not pay for it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from smope.declare.ranges import AtLeast, NotNegative, OrderedPair, Share, Sizes
from smope.declare.texts import ClassOrder, PathTo
from smope.streams.avalanche_parts import needed_parts_alone
from smope.streams.partition import Partition, check_sizes, divide, hold_out
from smope.streams.pixels.cache import PixelCache, cache_folder
from smope.streams.pixels.preload import preload_images
from smope.streams.pixels.transforms import Evaluation, Training
from smope.streams.selection import Selection
from smope.streams.source import ImageSet, Source

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario

    from smope.streams.task_images import TaskImages, Transforms

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One task of a stream.

    index: its number, from 0.
    name: such as "task 1", or what the source calls it.
    classes: labels of its training images, ascending. In a class-incremental stream they are new
        and contiguous; elsewhere some or all may have come before.
    class_names: one for each of `classes`.
    train: training images through the training transform; the dataset of the train experience.
    train_plain: the same images through the evaluation transform.
    test: images that the task is evaluated on, through the evaluation transform; the dataset of the
        test experience.
    """

    index: int
    name: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    train: TaskImages
    train_plain: TaskImages
    test: TaskImages


@dataclass(frozen=True)
class Stream:
    """A source divided into tasks.

    class_order: the source's class id of each label; labels are numbered as classes first appear.
    class_names: the name of each label.
    tasks: the tasks in order.
    content_hash: SHA-256 (hex) of all images with their classes.
    benchmark: the Avalanche scenario that carries the tasks. Its streams `train_stream` and
        `test_stream` have one experience a task, whose datasets are `Task.train` and `Task.test`;
        an Avalanche strategy can train on it as it is.
    evaluated_on: which images `Task.test` holds, "validation" where they were held out of training.
    skipped: names of broken images that were left out.
    facts: what run.json records about the source.
    """

    name: str
    class_order: tuple[int, ...]
    class_names: tuple[str, ...]
    tasks: tuple[Task, ...]
    content_hash: str
    benchmark: CLScenario
    evaluated_on: Literal["test", "validation"] = "test"
    skipped: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of images, labels, class order and tasks: equal streams give equal
        accuracies.
        """
        digest = hashlib.sha256(
            f"{self.content_hash},{self.class_order},{self.evaluated_on}".encode()
        )
        for task in self.tasks:
            train, test = list(task.train.source_index), list(task.test.source_index)
            digest.update(f"{train},{test}".encode())
        return digest.hexdigest()


def build_stream(  # noqa: PLR0913 (each argument is a key of the stream's configuration)
    source: Source,
    *,
    image_size: int,
    seed: int,
    num_tasks: Annotated[int | None, AtLeast(1, example="5")],
    classes_per_task: Annotated[Sequence[int] | Literal["random"] | None, Sizes()] = None,
    class_order: ClassOrder | Sequence[int | str] = "paper",
    crop_scale: Annotated[Sequence[float] | None, OrderedPair(0, 1, with_low=False)] = (0.08, 1.0),
    flip: bool = True,
    eval_crop: Annotated[float, Share(with_0=False)] = 0.875,
    disjoint_classes: Annotated[float, Share()] = 1.0,
    blurry_images: Annotated[float, Share()] = 0.1,
    validation_fraction: Annotated[float | None, Share(with_0=False, with_1=False)] = None,
    broken_images: Literal["error", "skip"] = "error",
    cache_gb: Annotated[float, NotNegative()] = 0.0,
    cache_dir: Annotated[str | None, PathTo("folder", "~/.cache/smope/images")] = None,
) -> Stream:
    """Decode `source` and divide it into tasks. Random generators are left as they were.

    Args:
        source: images and classes, from one of the source files.
        image_size: the side S of the images that the backbone reads, in pixels.
        seed: decides everything that is drawn.
        num_tasks: how many tasks; None where `classes_per_task` or the source says it.
        classes_per_task: see `class_order.divide_classes`.
        class_order: see `class_order.resolve_class_order`; label l is class `class_order[l]`.
        crop_scale: see `transforms.Training`, as `flip` and `eval_crop`.
        flip: mirrors half of the training images.
        eval_crop: part of each side that evaluation keeps.
        disjoint_classes: see `partition.divide`, as `blurry_images`.
        blurry_images: the share of training images that are spread over all tasks.
        validation_fraction: this part of each class's training images is held out and evaluated on;
            the test images are then not used at all.
        broken_images: "error" refuses images that cannot be read, "skip" leaves them out.
        cache_gb: decoded images are cached on disk, at most this many 10^9 bytes; 0 for no cache.
        cache_dir: the folder of the cache; None for the user's cache directory.

    Raises:
        UserError: an image cannot be read, an order or sizes do not fit the classes, or a class or
            task has no images.
    """
    for text in source.left_out.warnings():
        _log.warning("stream %s: %s", source.name, text)
    training = Training(image_size, crop_scale, flip, eval_crop)
    evaluation = Evaluation(image_size, eval_crop)
    check_sizes(
        source,
        seed=seed,
        num_tasks=num_tasks,
        classes_per_task=classes_per_task,
        class_order=class_order,
    )
    cache = PixelCache(cache_folder(cache_dir), round(cache_gb * 1e9)) if cache_gb > 0 else None
    decoded = preload_images(source, broken_images, cache)
    source = decoded.source
    if validation_fraction is not None:
        source = hold_out(source, validation_fraction, seed)
    partition = divide(
        source,
        seed=seed,
        num_tasks=num_tasks,
        classes_per_task=classes_per_task,
        class_order=class_order,
        disjoint_classes=disjoint_classes,
        blurry_images=blurry_images,
    )
    import_avalanche()
    from smope.streams.task_images import Transforms

    benchmark = _make_benchmark(source, partition, Transforms(training, evaluation), seed)
    class_names = tuple(source.class_names[class_id] for class_id in partition.order)
    return Stream(
        name=source.name,
        class_order=partition.order,
        class_names=class_names,
        tasks=_read_tasks(benchmark, class_names, source.task_names),
        content_hash=decoded.content_hash,
        benchmark=benchmark,
        evaluated_on="test" if validation_fraction is None else "validation",
        skipped=decoded.skipped,
        facts={**source.facts, **source.left_out.facts()},
    )


def import_avalanche() -> None:
    """Import the parts of Avalanche that a stream needs. The state of torch's generator
    does not change.

    Processes that train together must call this before they join a process group: later, Avalanche
    refuses to be imported by all but one of them.
    """
    with torch.random.fork_rng(devices=[]), needed_parts_alone():
        import avalanche.benchmarks.scenarios  # noqa: F401

        import smope.streams.task_images  # noqa: F401


def _make_benchmark(
    source: Source, partition: Partition, transforms: Transforms, seed: int
) -> CLScenario:
    """Avalanche's scenario: an experience a task, in a train and a test stream."""
    from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
    from avalanche.benchmarks.scenarios.supervised import with_classes_timeline

    from smope.streams.task_images import TaskImages

    label_of = {class_id: label for label, class_id in enumerate(partition.order)}

    def task_images(images: ImageSet, indices: Sequence[int], shown: Any) -> TaskImages:
        labels = [label_of[int(images.targets[index])] for index in indices]
        return TaskImages(Selection(images, indices, labels, seed), transforms, shown)

    with torch.random.fork_rng(devices=[]):
        scenario: Any = benchmark_from_datasets(
            train=[task_images(source.train, indices, "train") for indices in partition.train],
            test=[task_images(source.test, indices, "eval") for indices in partition.test],
        )
        return with_classes_timeline(scenario)  # pyright: ignore[reportReturnType]


def _read_tasks(
    benchmark: Any, class_names: tuple[str, ...], task_names: Sequence[str] | None
) -> tuple[Task, ...]:
    """The tasks that the experiences of a scenario hold."""
    tasks = []
    for index, (train, test) in enumerate(
        zip(benchmark.train_stream, benchmark.test_stream, strict=True)
    ):
        classes = tuple(sorted(train.classes_in_this_experience))
        task = Task(
            index=index,
            name=task_names[index] if task_names else f"task {index + 1}",
            classes=classes,
            class_names=tuple(class_names[label] for label in classes),
            train=train.dataset,
            train_plain=train.dataset.eval(),
            test=test.dataset,
        )
        tasks.append(task)
    return tuple(tasks)
