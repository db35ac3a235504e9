"""Which task each image belongs to: by the class order, by the source itself, or with blurred
boundaries between tasks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from smope.errors import UserError
from smope.seeding import stable_seed
from smope.streams.class_order import divide_classes, resolve_class_order
from smope.streams.layouts.splits import held_out
from smope.streams.source import ImageSet, Source


@dataclass(frozen=True)
class Partition:
    """A stream as indices into its source.

    order: class id of each label. Labels are numbered as their classes first appear in training, so
        that the classes seen after any task are 0..n-1.
    train: indices of each task's training images, ascending.
    test: indices of each task's test images, ascending.
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
    """Divide `source` into tasks.

    Where the source numbers its tasks itself (domains, a table), those are the tasks, and classes
    may come back. Otherwise each class has a home task, given by the class order and the sizes of
    the tasks (class_order.py).

    With `disjoint_classes` below 1 the boundaries between tasks are blurred, as in i-Blurry (Koh et
    al. 2022, arXiv 2110.10031). That fraction of the classes, drawn with `seed`, stays in its home
    task. Of the training images of all other classes a share `blurry_images` is drawn, and each of
    them moves to a task drawn with equal chance; one image of each class and all test images stay
    in the home task. With classes_per_task="random" the sizes of the tasks vary as well, as in
    Si-Blurry (Moon et al. 2023, arXiv 2308.09303). Unlike in the published splits, no class is
    dropped where numbers do not divide, and how many disjoint and blurred classes a task has is a
    matter of chance.

    Args:
        source: images and classes.
        seed: decides everything that is drawn.
        num_tasks: how many tasks; None where `classes_per_task` or the source says it.
        classes_per_task: see `class_order.divide_classes`.
        class_order: see `class_order.resolve_class_order`.
        disjoint_classes: fraction of the classes that stay in one task.
        blurry_images: share of the other classes' training images that move.

    Raises:
        UserError: keys do not fit the source, or a class or task is left without images.
    """
    order = resolve_class_order(class_order, source.class_names, seed)
    _require_images_of_every_class(source)
    if source.train.tasks is not None:
        _refuse_sizes(source, num_tasks, classes_per_task, disjoint_classes)
        train = list(source.train.tasks)
        test = _home_tasks(source, train) if source.test.tasks is None else list(source.test.tasks)
    else:
        sizes = divide_classes(len(order), num_tasks, classes_per_task, seed)
        task_of_position = [task for task, size in enumerate(sizes) for _ in range(size)]
        home = dict(zip(order, task_of_position, strict=True))
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


def check_sizes(
    source: Source,
    *,
    seed: int,
    num_tasks: int | None,
    classes_per_task: Sequence[int] | Literal["random"] | None,
    class_order: str | Sequence[int | str],
) -> None:
    """Hold the keys to the classes of a source, before its images are decoded.

    Args:
        source: classes, and images that nobody has looked at yet.
        seed: see `divide`, as the other arguments.
        num_tasks: how many tasks.
        classes_per_task: how many classes each of them has.
        class_order: in which order the classes come.

    Raises:
        UserError: they do not fit.
    """
    resolve_class_order(class_order, source.class_names, seed)
    if source.train.tasks is None:
        divide_classes(len(source.class_names), num_tasks, classes_per_task, seed)


def hold_out(source: Source, fraction: float, seed: int) -> Source:
    """Evaluate on a part of the training images instead of the test images, which are not used.

    Args:
        source: images and classes.
        fraction: of the training images of each class (in each task that the source numbers
            itself), at least one image.
        seed: draws them.

    Returns:
        The source without the held-out images in its training images and with them as test images.

    Raises:
        UserError: a class has a single training image.
    """
    train = source.train
    groups = list(zip(train.targets, train.tasks or [0] * len(train), strict=True))
    held = held_out(groups, fraction, seed)
    without = sorted({groups[i] for i in range(len(groups))} - {groups[i] for i in held})
    if without:
        target, task = without[0]
        in_task = f" in task {task + 1}" if train.tasks else ""
        raise UserError(
            f"stream.validation_fraction={fraction}: class {source.class_names[target]!r} has a "
            f"single training image{in_task}, so none can be held out; add images, remove the "
            "class, or leave stream.validation_fraction null"
        )
    remaining = sorted(set(range(len(train))) - set(held))
    return replace(source, train=train.choose(remaining), test=train.choose(held))


def _home_tasks(source: Source, train_tasks: Sequence[int]) -> list[int]:
    """The task of each test image: the one with most training images of its class, the first of
    equals.
    """
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
    """The tasks of training images after a share of the blurry classes' images has moved."""
    generator = random.Random(stable_seed(seed, "blurry"))
    blurry = set(generator.sample(sorted(order), len(order) - round(disjoint_classes * len(order))))
    pool = [index for index, target in enumerate(images.targets) if target in blurry]
    blurred = list(tasks)
    for index in generator.sample(pool, round(blurry_images * len(pool))):
        blurred[index] = generator.randrange(num_tasks)
    classes_at_home = {images.targets[index] for index in pool if blurred[index] == tasks[index]}
    for index in pool:
        # a class without an image in its home task would be tested before it was learned
        if images.targets[index] not in classes_at_home:
            classes_at_home.add(images.targets[index])
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
                "themselves which task they belong to; leave it at its default"
            )
    own_tasks = max(source.train.tasks) + 1
    if num_tasks is not None and num_tasks != own_tasks:
        raise UserError(
            f"stream.num_tasks={num_tasks}, but stream {source.name} comes in {own_tasks} tasks "
            "of its own; leave stream.num_tasks null"
        )


def _require_images_of_every_class(source: Source) -> None:
    for split, images in (("training", source.train), ("test", source.test)):
        empty = sorted(set(range(len(source.class_names))) - set(images.targets))
        if empty:
            redraw = ", or draw others with stream.split_seed" * (
                source.facts.get("split") == "drawn"
            )
            raise UserError(
                f"stream {source.name}: every class needs at least one {split} image, class "
                f"{source.class_names[empty[0]]!r} has none; add images or remove the class{redraw}"
            )


def _require_images_of_every_task(source: Source, partition: Partition) -> None:
    for split, tasks in (("training", partition.train), ("test", partition.test)):
        for task, images in enumerate(tasks):
            if not images:
                name = f" ({source.task_names[task]})" if source.task_names else ""
                raise UserError(
                    f"stream {source.name}: every task needs at least one {split} image, task "
                    f"{task + 1}{name} has none; add images, or choose other tasks"
                )
