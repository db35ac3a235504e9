"""Which task an image belongs to: by the class order, by the source itself, or blurred between
tasks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from smope.errors import UserError
from smope.seeding import stable_seed
from smope.streams.class_order import divide_classes, resolve_class_order
from smope.streams.layouts.splits import held_out
from smope.streams.source import ImageSet, Source


@dataclass(frozen=True)
class Partition:
    """A stream as indices into its source.

    order: class id of each label; labels are numbered as their classes first appear in training, so
    that the classes seen after any task are 0..n-1. train, test: image indices of each task,
    ascending.
    """

    order: tuple[int, ...]
    train: tuple[tuple[int, ...], ...]
    test: tuple[tuple[int, ...], ...]


def divide(
    source: Source,
    *,
    seed: int,
    num_tasks: int | None,
    classes_per_task: Sequence[int] | Literal["random"] | None,
    class_order: str | Sequence[int | str],
    disjoint_classes: float = 1.0,
    blurry_images: float = 0.0,
) -> Partition:
    """The tasks of `source`. UserError where they cannot be as asked, or a class or task is left
    without images.

    Where the source numbers its tasks itself (domains, a table), those are the tasks and classes
    may come back. Otherwise each class has a home task, given by `class_order` and sizes
    (class_order.py). Of the classes that a fraction `disjoint_classes` leaves over, drawn with
    `seed`, a share `blurry_images` of the training images is drawn and spread over all tasks, each
    to any with equal chance; one image of each class and all test images stay at home. These are
    the blurred boundaries of i-Blurry (Koh et al. 2022, arXiv 2110.10031); with
    classes_per_task="random" the tasks' sizes vary as well, as in Si-Blurry (Moon et al. 2023,
    arXiv 2308.09303). Unlike the published splits, no class is dropped where numbers do not divide,
    and tasks differ in how many disjoint and blurred classes they have by chance.
    """
    order = resolve_class_order(class_order, source.class_names, seed)
    _require_images_of_every_class(source)
    if source.train.tasks is not None:
        _refuse_sizes(source, num_tasks, classes_per_task, disjoint_classes)
        train = list(source.train.tasks)
        test = list(source.test.tasks) if source.test.tasks is not None else _at_home(source, train)
    else:
        sizes = divide_classes(len(order), num_tasks, classes_per_task, seed)
        homes = [task for task, size in enumerate(sizes) for _ in range(size)]
        home = dict(zip(order, homes, strict=True))
        train, test = (
            [home[target] for target in images.targets] for images in (source.train, source.test)
        )
        if disjoint_classes < 1:
            train = _blurred(
                source.train, train, order, len(sizes), disjoint_classes, blurry_images, seed
            )
    count = max(*train, *test) + 1
    partition = Partition(
        _by_appearance(source.train, train, order), _collect(train, count), _collect(test, count)
    )
    _require_images_of_every_task(source, partition)
    return partition


def hold_out(source: Source, fraction: float, seed: int) -> Source:
    """`source` with its test images replaced by a part of its training images, which are then no
    longer trained on.

    `fraction` of each class (in each task that the source itself numbers), at least one image,
    drawn with `seed`. The test images are not touched. UserError for a class with a single training
    image.
    """
    train = source.train
    groups = list(zip(train.targets, train.tasks or [0] * len(train), strict=True))
    held = held_out(groups, fraction, seed)
    without = sorted({groups[i] for i in range(len(groups))} - {groups[i] for i in held})
    if without:
        target, task = without[0]
        place = f" in task {task + 1}" if train.tasks else ""
        raise UserError(
            f"stream.validation_fraction={fraction}: class {source.class_names[target]!r} has a "
            f"single training image"
            f"{place}, so none can be held out; add images, remove the class, or leave "
            f"stream.validation_fraction null"
        )
    kept = sorted(set(range(len(train))) - set(held))
    return Source(
        source.name,
        source.class_names,
        train.choose(kept),
        train.choose(held),
        source.task_names,
        source.facts,
    )


def _at_home(source: Source, train_tasks: Sequence[int]) -> list[int]:
    """The task of each test image: where its class has most training images, the first of equals."""
    counts: dict[int, dict[int, int]] = {}
    for target, task in zip(source.train.targets, train_tasks, strict=True):
        tasks = counts.setdefault(target, {})
        tasks[task] = tasks.get(task, 0) + 1
    home = {
        target: max(sorted(tasks), key=lambda task: tasks[task]) for target, tasks in counts.items()
    }
    return [home[target] for target in source.test.targets]


def _blurred(
    images: ImageSet,
    tasks: list[int],
    order: Sequence[int],
    num_tasks: int,
    disjoint_classes: float,
    blurry_images: float,
    seed: int,
) -> list[int]:
    """The tasks of training images after a share of the blurry classes' images was spread over all
    tasks.
    """
    draw = random.Random(stable_seed(seed, "blurry"))
    blurry = set(draw.sample(sorted(order), len(order) - round(disjoint_classes * len(order))))
    pool = [index for index, target in enumerate(images.targets) if target in blurry]
    blurred = list(tasks)
    for index in draw.sample(pool, round(blurry_images * len(pool))):
        blurred[index] = draw.randrange(num_tasks)
    at_home = {images.targets[index] for index in pool if blurred[index] == tasks[index]}
    for index in pool:
        if images.targets[index] not in at_home:  # its class would be tested before it was learned
            at_home.add(images.targets[index])
            blurred[index] = tasks[index]
    return blurred


def _by_appearance(images: ImageSet, tasks: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    first: dict[int, int] = {}
    for target, task in zip(images.targets, tasks, strict=True):
        first[target] = min(task, first.get(target, task))
    # stable: the class order decides within a task
    return tuple(sorted(order, key=lambda class_id: first[class_id]))


def _collect(tasks: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    members: list[list[int]] = [[] for _ in range(count)]
    for index, task in enumerate(tasks):
        members[task].append(index)
    return tuple(map(tuple, members))


def _refuse_sizes(
    source: Source, num_tasks: int | None, classes_per_task: object | None, disjoint_classes: float
) -> None:
    assert source.train.tasks is not None
    for key, is_set in (
        ("classes_per_task", classes_per_task is not None),
        ("disjoint_classes", disjoint_classes < 1),
    ):
        if is_set:
            raise UserError(
                f"stream.{key} has no meaning for stream {source.name}, whose images say "
                f"themselves which task "
                "they belong to; leave it at its default"
            )
    found = max(source.train.tasks) + 1
    if num_tasks is not None and num_tasks != found:
        raise UserError(
            f"stream.num_tasks={num_tasks}, but stream {source.name} comes in {found} tasks of "
            f"its own; "
            "leave stream.num_tasks null"
        )


def _require_images_of_every_class(source: Source) -> None:
    for split, images in (("training", source.train), ("test", source.test)):
        empty = sorted(set(range(len(source.class_names))) - set(images.targets))
        if empty:
            raise UserError(
                f"stream {source.name}: every class needs at least one {split} image, class "
                f"{source.class_names[empty[0]]!r} has none; add images or remove the class"
            )


def _require_images_of_every_task(source: Source, partition: Partition) -> None:
    for split, tasks in (("training", partition.train), ("test", partition.test)):
        for task, images in enumerate(tasks):
            if not images:
                name = f" ({source.task_names[task]})" if source.task_names else ""
                raise UserError(
                    f"stream {source.name}: every task needs at least one {split} image, task "
                    f"{task + 1}{name} has "
                    "none; add images, or choose other tasks"
                )
