"""What every stream shares: a source of labelled images becomes a stream of tasks.

A source file returns a `Source` (images, the source's own class ids). `build_stream` reads it,
decides which task each image belongs to (partition.py), remaps the labels, lets Avalanche carry the
tasks and hands out `Task`s, whose datasets need no Avalanche to be used.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from smope.seeding import stable_seed
from smope.streams.partition import Partition, divide, hold_out
from smope.streams.pixels.cache import PixelCache, cache_folder
from smope.streams.pixels.preload import read
from smope.streams.pixels.transforms import (
    Evaluation,
    Training,
    Transform,
    Window,
    collate,
    part,
    resample,
)
from smope.streams.source import ImageSet, Source

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario


@dataclass(frozen=True)
class Task:
    """One task. `classes` are the labels of its training images, ascending; in a class-incremental
    stream they are new and contiguous, elsewhere some or all may have come before.

    `train` applies the training transform, `train_plain` shows the same images through the
    evaluation transform, `test` are the images that the task is evaluated on, through the
    evaluation transform.
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
    """A source cut into tasks. `class_order[label]` is the source's class id, `class_names[label]`
    its name.

    Labels are numbered as their classes first appear. `evaluated_on` says which images the tasks'
    `test` are: "test", or "validation" where they were held out of training. `skipped` names broken
    images that were left out. `benchmark` is the Avalanche scenario behind the tasks: train and
    test streams with proper train and eval transforms, ready for an Avalanche strategy.
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
            digest.update(f"{task.train.source_index},{task.test.source_index}".encode())
        return digest.hexdigest()


class Transforms(NamedTuple):
    """How images are shown in training and in evaluation."""

    train: Transform
    eval: Transform


class TaskImages(Dataset):
    """The images of one task: items are (float32 image (3, S, S) in [0, 1], label).

    What augmentation draws for an image depends on the seed, the epoch and the image's index in its
    source alone, never on batch order, workers, class order or other draws; no global generator is
    read or changed. Call `set_epoch` before making the epoch's iterator (worker processes copy the
    dataset when they start, so a loader with persistent workers would stay in its first epoch).

    `parts` are the same images before resampling, for a loader that resamples whole batches on the
    device.
    """

    def __init__(
        self,
        images: ImageSet,
        source_index: Sequence[int],
        targets: Sequence[int],
        transform: Transform,
        seed: int,
    ) -> None:
        """`source_index` says which of `images` these are, `targets` their labels in the stream's
        numbering.
        """
        self.targets = [int(target) for target in targets]
        self.source_index = [int(index) for index in source_index]
        self.transform = transform
        self.parts = Parts(self)
        self._images = images
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations are drawn from now on."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        return resample(collate([self.parts[item]]), self.transform.image_size)[0], self.targets[
            item
        ]

    def pixels(self, item: int) -> numpy.ndarray:
        """Image `item` before any transform: RGB, (height, width, 3) uint8."""
        return self._images.pixels(self.source_index[item])

    def part(self, item: int) -> tuple[numpy.ndarray, Window, int]:
        """What image `item` shows in this epoch: its pixels, how they are resampled, and its
        label.
        """
        index = self.source_index[item]
        draw = random.Random(stable_seed(self._seed, self._epoch, index))
        return *part(self._images.pixels(index), self.transform, draw), self.targets[item]


def together(sets: Sequence[TaskImages]) -> TaskImages:
    """The images of several tasks of one stream, cut from the same source, as one set in the order
    given.
    """
    first = sets[0]
    index = [number for images in sets for number in images.source_index]
    targets = [target for images in sets for target in images.targets]
    return TaskImages(first._images, index, targets, first.transform, first._seed)


class Parts(Dataset):
    """Items for `transforms.collate`: see TaskImages.part."""

    def __init__(self, images: TaskImages) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, item: int) -> tuple[numpy.ndarray, Window, int]:
        return self._images.part(item)


def build_stream(
    source: Source,
    *,
    image_size: int,
    seed: int,
    num_tasks: int | None,
    classes_per_task: Sequence[int] | Literal["random"] | None = None,
    class_order: str | Sequence[int | str] = "paper",
    crop_scale: Sequence[float] | None = (0.08, 1.0),
    flip: bool = True,
    eval_crop: float = 0.875,
    disjoint_classes: float = 1.0,
    blurry_images: float = 0.1,
    validation_fraction: float | None = None,
    broken_images: Literal["error", "skip"] = "error",
    cache_gb: float = 0.0,
    cache_dir: str | None = None,
) -> Stream:
    """Read `source` and cut it into tasks; see partition.py for which there are, transforms.py for
    the pictures.

    Label l is the source's class `class_order[l]`. `image_size` is the side S in pixels. With
    `validation_fraction` that part of each class's training images is held out and evaluated on
    instead of the test images, which are then not used at all. Decoded images are kept from run to
    run in `cache_dir` (the user's cache directory), `cache_gb` of 10^9 bytes at most (0: none).
    Random generators are left as they were. UserError for an image that cannot be read (unless
    `broken_images` is "skip"), a class order or sizes that do not fit the classes, and for a class
    or task without images.
    """
    transforms = Transforms(
        Training(image_size, crop_scale, flip, eval_crop), Evaluation(image_size, eval_crop)
    )
    cache = PixelCache(cache_folder(cache_dir), round(cache_gb * 1e9)) if cache_gb > 0 else None
    contents = read(source, broken_images, cache)
    source = contents.source
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
    names = tuple(source.class_names[i] for i in partition.order)
    benchmark = _cut(source, partition, transforms)
    return Stream(
        name=source.name,
        class_order=partition.order,
        class_names=names,
        tasks=tuple(
            _task(benchmark, index, source, names, transforms, seed)
            for index in range(len(partition.train))
        ),
        content_hash=contents.content_hash,
        benchmark=benchmark,
        evaluated_on="test" if validation_fraction is None else "validation",
        skipped=contents.skipped,
        facts=source.facts,
    )


def _task(
    benchmark: CLScenario,
    index: int,
    source: Source,
    names: tuple[str, ...],
    transforms: Transforms,
    seed: int,
) -> Task:
    train, test = (benchmark.streams[split][index].dataset for split in ("train", "test"))
    classes = tuple(sorted({int(target) for target in train.targets}))
    return Task(
        index=index,
        name=source.task_names[index] if source.task_names else f"task {index + 1}",
        classes=classes,
        class_names=tuple(names[label] for label in classes),
        train=TaskImages(source.train, train.source_index, train.targets, transforms.train, seed),
        train_plain=TaskImages(
            source.train, train.source_index, train.targets, transforms.eval, seed
        ),
        test=TaskImages(source.test, test.source_index, test.targets, transforms.eval, seed),
    )


class _LabelledImages(Dataset):
    """(RGB pixels, remapped label) of one split, as Avalanche wants its raw data."""

    def __init__(self, images: ImageSet, targets: list[int]) -> None:
        self._images = images
        self._targets = targets

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, item: int) -> tuple[numpy.ndarray, int]:
        return self._images.pixels(item), self._targets[item]


class _Shown:
    """A transform as Avalanche calls it: pixels to image, random numbers from torch's own
    generator.
    """

    def __init__(self, transform: Transform) -> None:
        self._transform = transform

    def __call__(self, pixels: numpy.ndarray) -> Tensor:
        draw = random.Random(int(torch.randint(2**62, ())))
        return resample(
            collate([(*part(pixels, self._transform, draw), 0)]), self._transform.image_size
        )[0]


def import_avalanche() -> None:
    """Import what tasks are made with; that draws from torch's generator, which is left as it was.

    Processes that train together must have done so before they join: later, Avalanche refuses it to
    all but one.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # of one of Avalanche's dependencies, for strategies that nothing here uses
        warnings.filterwarnings("ignore", message="no QP solver found")
        import avalanche.benchmarks.scenarios.supervised  # noqa: F401 (all of Avalanche comes with it)


def _cut(source: Source, partition: Partition, transforms: Transforms) -> CLScenario:
    """Avalanche's scenario over the remapped labels, an experience a task."""
    import_avalanche()
    from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
    from avalanche.benchmarks.scenarios.supervised import with_classes_timeline

    with torch.random.fork_rng(devices=[]):
        label_of = {class_id: label for label, class_id in enumerate(partition.order)}
        train = _avalanche_dataset(source.train, label_of, transforms)
        test = _avalanche_dataset(source.test, label_of, transforms).eval()
        scenario: Any = benchmark_from_datasets(
            train=[train.subset(indices) for indices in partition.train],
            test=[test.subset(indices) for indices in partition.test],
        )
        return with_classes_timeline(scenario)  # pyright: ignore[reportReturnType]


def _avalanche_dataset(
    images: ImageSet, label_of: Mapping[int, int], transforms: Transforms
) -> Any:
    from avalanche.benchmarks.utils import DataAttribute, TransformGroups
    from avalanche.benchmarks.utils.classification_dataset import (
        TaskAwareSupervisedClassificationDataset,
    )

    targets: Any = [label_of[int(target)] for target in images.targets]
    task_labels: Any = [0] * len(targets)
    source_index: Any = list(range(len(targets)))
    attributes = [
        DataAttribute(targets, "targets"),
        # strategies expect (image, label, task label); a class-incremental stream has the one task
        # label 0
        DataAttribute(task_labels, "targets_task_labels", use_in_getitem=True),
        DataAttribute(source_index, "source_index"),
    ]
    return TaskAwareSupervisedClassificationDataset(
        [_LabelledImages(images, targets)],
        data_attributes=attributes,
        transform_groups=TransformGroups(
            {"train": _Shown(transforms.train), "eval": _Shown(transforms.eval)}
        ),
    )
