"""What every stream shares: a source of labelled images becomes a class-incremental stream of tasks.

A source file returns a `Source` (raw images, the source's own class ids). `build_stream` remaps the labels to
the class order, lets Avalanche cut the stream and hands out `Task`s, whose datasets need no Avalanche to be
used.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from smope.errors import UserError
from smope.seeding import stable_seed
from smope.streams.class_order import divide_classes, resolve_class_order
from smope.streams.transforms import evaluation_transform, training_transform

if TYPE_CHECKING:
    from avalanche.benchmarks import CLScenario


@dataclass(frozen=True)
class ImageSet:
    """Raw images without transforms.

    `targets[i]` is the class id of image i, a plain int in the source's own numbering 0..num_classes-1;
    `load(i)` gives image i as an RGB picture (it must be picklable: a method or a function, no lambda);
    `names[i]` is its file name where it has one.
    """

    targets: Sequence[int]
    load: Callable[[int], Image.Image]
    names: Sequence[str] | None = None


@dataclass(frozen=True)
class Source:
    """A data set: its classes, its training and test images, and the `hash_images` of both."""

    name: str
    class_names: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    content_hash: str


@dataclass(frozen=True)
class Task:
    """One task: `classes` are remapped labels, contiguous and in stream order.

    `train` applies the training transform, `train_plain` shows the same images through the evaluation
    transform, `test` are the test images of the task's classes through the evaluation transform.
    """

    index: int
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    train: TaskImages
    train_plain: TaskImages
    test: TaskImages


@dataclass(frozen=True)
class Stream:
    """A source cut into tasks. `class_order[label]` is the source's class id, `class_names[label]` its name.

    `benchmark` is the Avalanche scenario behind the tasks: train and test streams with proper train and eval
    transforms, ready for an Avalanche strategy.
    """

    name: str
    class_order: tuple[int, ...]
    class_names: tuple[str, ...]
    tasks: tuple[Task, ...]
    content_hash: str
    benchmark: CLScenario
    evaluated_on: str = "test"

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of images, labels, class order and tasks: equal streams give equal accuracies."""
        parts = [self.content_hash, *map(str, self.class_order), *(str(len(task.classes)) for task in self.tasks)]
        return hashlib.sha256(",".join(parts).encode()).hexdigest()


class TaskImages(Dataset):
    """The images of one task: items are (float32 image (3, S, S) in [0, 1], label).

    With a `seed`, what augmentation draws for an image depends on seed, epoch and the image's index in its
    source alone, never on batch order, workers, class order or other draws; torch's generator is left as it
    was. Call `set_epoch` before making the epoch's iterator (worker processes copy the dataset when they
    start, so a loader with persistent workers would stay in its first epoch). `seed=None` is for transforms
    that draw nothing.
    """

    def __init__(self, dataset: Any, seed: int | None = None) -> None:
        """`dataset`: an Avalanche dataset, train or eval view, with attributes targets and source_index."""
        self.targets: list[int] = [int(target) for target in dataset.targets]
        self.source_index: list[int] = [int(index) for index in dataset.source_index]
        self._dataset = dataset
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations are drawn from now on."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        if self._seed is None:
            return self._dataset[item][0], self.targets[item]
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed the accelerators too, which fork_rng does not put back here
            torch.default_generator.manual_seed(stable_seed(self._seed, self._epoch, self.source_index[item]))
            return self._dataset[item][0], self.targets[item]


def hash_images(splits: Mapping[str, Iterable[tuple[str, bytes]]]) -> str:
    """SHA-256 (hex) of a data set given as {split: pairs of (class name, bytes of one image)}.

    Sorted before hashing: the order of the images, their names and their place on disk do not matter.
    """
    lines = [
        f"{split}\0{class_name}\0{hashlib.sha256(content).hexdigest()}\n"
        for split, images in splits.items()
        for class_name, content in images
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def build_stream(
    source: Source,
    *,
    image_size: int,
    seed: int,
    num_tasks: int,
    classes_per_task: Sequence[int] | None,
    class_order: str | Sequence[int],
    crop_scale: Sequence[float] | None,
    flip: bool,
    eval_crop: float,
) -> Stream:
    """Cut `source` into tasks of `classes_per_task` classes, or `num_tasks` equal ones, in `class_order`.

    Labels are remapped first: label l is the source's class `class_order[l]`, so task after task brings the
    next contiguous labels. `image_size` is the side S in pixels. Random generators are left as they were.
    UserError for a class order or sizes that do not fit the classes, and for a class without images.
    """
    order = resolve_class_order(class_order, len(source.class_names), seed)
    sizes = divide_classes(len(source.class_names), num_tasks, classes_per_task)
    _require_images_of_every_class(source)
    transforms = {
        "train": training_transform(image_size, crop_scale, flip, eval_crop),
        "eval": evaluation_transform(image_size, eval_crop),
    }
    names = tuple(source.class_names[i] for i in order)
    benchmark = _cut(source, order, sizes, transforms)
    tasks = []
    for index, size in enumerate(sizes):
        first = sum(sizes[:index])
        train, test = (benchmark.streams[split][index].dataset for split in ("train", "test"))
        tasks.append(
            Task(
                index=index,
                classes=tuple(range(first, first + size)),
                class_names=names[first : first + size],
                train=TaskImages(train.train(), seed),
                train_plain=TaskImages(train.eval()),
                test=TaskImages(test.eval()),
            )
        )
    return Stream(source.name, order, names, tuple(tasks), source.content_hash, benchmark)


def _require_images_of_every_class(source: Source) -> None:
    for split, images in (("training", source.train), ("test", source.test)):
        empty = sorted(set(range(len(source.class_names))) - set(images.targets))
        if empty:
            raise UserError(
                f"stream {source.name}: every class needs at least one {split} image, class "
                f"{source.class_names[empty[0]]!r} has none; add images or remove the class"
            )


class _LabelledImages(Dataset):
    """(RGB picture, remapped label) of one split, as Avalanche wants its raw data."""

    def __init__(self, images: ImageSet, targets: list[int]) -> None:
        self._load = images.load
        self._targets = targets

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, item: int) -> tuple[Image.Image, int]:
        return self._load(item), self._targets[item]


def _cut(source: Source, order: Sequence[int], sizes: list[int], transforms: dict[str, Any]) -> CLScenario:
    """Avalanche's scenario over the remapped labels: experience i has the next `sizes[i]` labels."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # of one of Avalanche's dependencies, for strategies that nothing here uses
        warnings.filterwarnings("ignore", message="no QP solver found")
        from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark

        label_of = {class_id: label for label, class_id in enumerate(order)}
        train = _avalanche_dataset(source.train, label_of, transforms)
        test = _avalanche_dataset(source.test, label_of, transforms).eval()
        # explicit order and sizes: num_experiences alone drops the classes that do not divide
        return class_incremental_benchmark(
            {"train": train, "test": test}, class_order=list(range(len(order))), num_classes_per_exp=sizes
        )


def _avalanche_dataset(images: ImageSet, label_of: Mapping[int, int], transforms: dict[str, Any]) -> Any:
    from avalanche.benchmarks.utils import DataAttribute, TransformGroups
    from avalanche.benchmarks.utils.classification_dataset import TaskAwareSupervisedClassificationDataset

    targets: Any = [label_of[int(target)] for target in images.targets]
    task_labels: Any = [0] * len(targets)
    source_index: Any = list(range(len(targets)))
    attributes = [
        DataAttribute(targets, "targets"),
        # strategies expect (image, label, task label); a class-incremental stream has the one task label 0
        DataAttribute(task_labels, "targets_task_labels", use_in_getitem=True),
        DataAttribute(source_index, "source_index"),
    ]
    return TaskAwareSupervisedClassificationDataset(
        [_LabelledImages(images, targets)],
        data_attributes=attributes,
        transform_groups=TransformGroups(transforms),
    )
