"""Which task an image belongs to: properties that hold for every source, seed and share, and a
slow loop.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smope.errors import UserError
from smope.seeding import stable_seed
from smope.streams.class_order import divide_classes, resolve_class_order
from smope.streams.partition import Partition, divide, hold_out
from smope.streams.source import ImageSet, Source

SEEDS = st.integers(0, 2**32 - 1)


def image_set(targets: list[int], split: str) -> ImageSet:
    return ImageSet(targets, [Path(split, f"{index}.png") for index in range(len(targets))])


@st.composite
def sources(draw: st.DrawFn, least: int = 1) -> Source:
    """One to seven classes, of each `least` to nine training images and one to three test images,
    in any order.
    """
    classes = draw(st.integers(1, 7))
    shuffle = random.Random(draw(st.integers(0, 99))).shuffle
    sets = []
    for split, low, high in (("train", least, 9), ("test", 1, 3)):
        targets = [target for target in range(classes) for _ in range(draw(st.integers(low, high)))]
        shuffle(targets)
        sets.append(image_set(targets, split))
    return Source("any", tuple("abcdefg"[:classes]), *sets)


@st.composite
def sizes_for(draw: st.DrawFn, classes: int) -> tuple[int, list[int] | str]:
    """How many tasks, and how many classes each holds."""
    num_tasks = draw(st.integers(1, classes))
    if draw(st.booleans()):
        return num_tasks, "random"
    cuts = sorted(draw(st.permutations(range(1, classes)))[: num_tasks - 1])
    return num_tasks, [end - start for start, end in zip([0, *cuts], [*cuts, classes], strict=True)]


def homes_of(source: Source, seed: int, num_tasks: int, sizes: list[int] | str) -> dict[int, int]:
    """The home task of each class."""
    order = resolve_class_order("paper", source.class_names, seed)
    homes = []
    for task, size in enumerate(divide_classes(len(order), num_tasks, sizes, seed)):
        homes += [task] * size
    return dict(zip(order, homes, strict=True))


def task_of_each(tasks: tuple[tuple[int, ...], ...]) -> dict[int, int]:
    found = {}
    for task, images in enumerate(tasks):
        assert list(images) == sorted(images)
        for index in images:
            assert index not in found, "an image in two tasks"
            found[index] = task
    return found


def check_labels(source: Source, partition: Partition) -> None:
    """The classes seen after any task are labelled 0..n-1."""
    label_of = {class_id: label for label, class_id in enumerate(partition.order)}
    assert sorted(partition.order) == list(range(len(source.class_names)))
    seen: set[int] = set()
    for images in partition.train:
        seen |= {label_of[source.train.targets[index]] for index in images}
        assert seen == set(range(len(seen)))


@settings(deadline=None, max_examples=300)
@given(st.data(), sources(), SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_properties(data, source, seed, disjoint_classes, blurry_images):
    classes = len(source.class_names)
    num_tasks, sizes = data.draw(sizes_for(classes))
    options = {
        "seed": seed,
        "num_tasks": num_tasks,
        "classes_per_task": sizes,
        "class_order": "paper",
    }
    partition = divide(
        source, disjoint_classes=disjoint_classes, blurry_images=blurry_images, **options
    )
    home = homes_of(source, seed, num_tasks, sizes)
    train, test = task_of_each(partition.train), task_of_each(partition.test)

    assert len(partition.train) == len(partition.test) == num_tasks
    assert train.keys() == set(range(len(source.train))) and test.keys() == set(
        range(len(source.test))
    )
    assert all(test[index] == home[target] for index, target in enumerate(source.test.targets))
    check_labels(source, partition)

    moved = Counter(
        target for index, target in enumerate(source.train.targets) if train[index] != home[target]
    )
    images = Counter(source.train.targets)
    assert len(moved) <= classes - round(disjoint_classes * classes)
    most = sum(
        sorted(images.values())[len(images) - (classes - round(disjoint_classes * classes)) :]
    )
    assert sum(moved.values()) <= round(blurry_images * most)
    assert all(moved[target] < images[target] for target in images), (
        "a class that is tested before it is learned"
    )
    assert all(partition.train) and all(partition.test)

    assert partition == divide(
        source, disjoint_classes=disjoint_classes, blurry_images=blurry_images, **options
    )
    if disjoint_classes == 1 or blurry_images == 0:
        assert not moved and partition == divide(source, **options)


@settings(deadline=None, max_examples=100)
@given(st.data(), sources(), SEEDS, st.floats(0, 0.99), st.floats(0, 1))
def test_equals_a_slow_loop(data, source, seed, disjoint_classes, blurry_images):
    classes = len(source.class_names)
    num_tasks, sizes = data.draw(sizes_for(classes))
    home = homes_of(source, seed, num_tasks, sizes)
    draw = random.Random(stable_seed(seed, "blurry"))
    blurry = draw.sample(list(range(classes)), classes - round(disjoint_classes * classes))
    pool = [index for index in range(len(source.train)) if source.train.targets[index] in blurry]
    task_of = {index: home[target] for index, target in enumerate(source.train.targets)}
    for index in draw.sample(pool, round(blurry_images * len(pool))):
        task_of[index] = draw.randrange(num_tasks)
    for target in blurry:
        own = [index for index in range(len(source.train)) if source.train.targets[index] == target]
        if all(task_of[index] != home[target] for index in own):
            task_of[own[0]] = home[target]

    partition = divide(
        source, seed=seed, num_tasks=num_tasks, classes_per_task=sizes, class_order="paper",
        disjoint_classes=disjoint_classes, blurry_images=blurry_images,
    )  # fmt: skip
    assert task_of_each(partition.train) == task_of


def many(images: int = 2000, classes: int = 10) -> Source:
    targets = [index % classes for index in range(images)]
    return Source(
        "many",
        tuple("abcdefghij"[:classes]),
        image_set(targets, "train"),
        image_set(targets, "test"),
    )


def blurred(source: Source, seed: int = 0, **options: object) -> Partition:
    values = {"num_tasks": 5, "classes_per_task": None, "class_order": "paper"}
    return divide(source, seed=seed, **(values | options))  # type: ignore[arg-type]


def test_the_share_that_moves():
    """A share s of the images is drawn, and of those (T - 1)/T leave their home: 0.5 · 4/5 here."""
    source = many()
    train = task_of_each(blurred(source, disjoint_classes=0.0, blurry_images=0.5).train)
    home = homes_of(source, 0, 5, None)  # type: ignore[arg-type]
    moved = [
        train[index]
        for index, target in enumerate(source.train.targets)
        if train[index] != home[target]
    ]
    assert len(moved) / len(source.train) == pytest.approx(0.4, abs=0.03)
    assert min(Counter(moved).values()) / len(moved) > 0.15, "they are spread over all tasks"

    train = task_of_each(blurred(source, disjoint_classes=0.7, blurry_images=0.5).train)
    blurry = {
        target for index, target in enumerate(source.train.targets) if train[index] != home[target]
    }
    assert len(blurry) == 3


def test_everything_blurred_still_leaves_an_image_of_each_class_at_home():
    source = many(10)
    for seed in range(20):
        partition = blurred(source, seed, disjoint_classes=0.0, blurry_images=1.0)
        assert all(len(images) == 2 for images in partition.train), "one image a class cannot move"


def test_seeds_decide():
    source = many(100)
    options = {"class_order": "sorted", "disjoint_classes": 0.5, "blurry_images": 0.5}
    partitions = [blurred(source, seed, **options) for seed in range(5)]
    assert len({partition.train for partition in partitions}) == 5
    assert partitions[3] == blurred(source, 3, **options)
    sizes = [[len(images) for images in partition.train] for partition in partitions]
    assert sizes[0] == [19, 26, 15, 17, 23], "a seed draws what it always drew"


def test_blurring_leaves_the_order_of_whole_tasks_alone():
    """With and without blurring the same classes have the same home tasks: only images move."""
    source = many()
    options = {"classes_per_task": "random", "disjoint_classes": 0.5, "blurry_images": 0.3}
    assert blurred(source, **options).test == blurred(source, classes_per_task="random").test


@given(st.integers(1, 60), st.data(), SEEDS)
def test_random_sizes_add_up(classes, data, seed):
    num_tasks = data.draw(st.integers(1, classes))
    sizes = divide_classes(classes, num_tasks, "random", seed)
    assert len(sizes) == num_tasks and sum(sizes) == classes and min(sizes) >= 1
    assert sizes == divide_classes(classes, num_tasks, "random", seed)


def test_random_sizes_vary():
    assert len({tuple(divide_classes(20, 5, "random", seed)) for seed in range(10)}) > 5


@settings(deadline=None, max_examples=200)
@given(sources(least=2), st.floats(0.01, 0.99), SEEDS)
def test_holding_out_never_touches_test_images(source, fraction, seed):
    held = hold_out(source, fraction, seed)
    untouchable = set(source.test.images)
    train, validation = list(held.train.images), list(held.test.images)
    assert not untouchable & {*train, *validation}
    assert sorted([*train, *validation]) == sorted(source.train.images), "every image once"
    target_of = dict(zip(source.train.images, source.train.targets, strict=True))
    for part in (held.train, held.test):
        assert set(part.targets) == set(source.train.targets), "every class in both"
        assert [target_of[image] for image in part.images] == list(part.targets)
    for target, count in Counter(source.train.targets).items():
        expected = min(max(round(fraction * count), 1), count - 1)
        assert list(held.test.targets).count(target) == expected
    assert held == hold_out(source, fraction, seed)


def test_holding_out_is_seeded_and_keeps_given_tasks():
    source = many(100)
    assert hold_out(source, 0.2, 0) != hold_out(source, 0.2, 1)
    tasks = [index // 50 for index in range(100)]
    given_tasks = dataclasses.replace(source, train=dataclasses.replace(source.train, tasks=tasks))
    held = hold_out(given_tasks, 0.2, 0)
    pairs = Counter(zip(held.test.targets, held.test.tasks, strict=True))
    assert pairs == {(target, task): 1 for target in range(10) for task in (0, 1)}
    partition = blurred(held, num_tasks=None)
    assert [len(images) for images in partition.train] == [40, 40]
    assert [len(images) for images in partition.test] == [10, 10]


def test_a_single_image_cannot_be_held_out():
    single = Source("few", ("a", "b"), image_set([0, 0, 1], "train"), image_set([0, 1], "test"))
    with pytest.raises(
        UserError, match=r"validation_fraction=0\.5: class 'b' has a single training image, so none"
    ):
        hold_out(single, 0.5, 0)
    tasks = dataclasses.replace(single.train, targets=[0, 0, 0], tasks=[0, 0, 1])
    with pytest.raises(UserError, match=r"class 'a' has a single training image in task 2"):
        hold_out(dataclasses.replace(single, train=tasks), 0.5, 0)


@st.composite
def sources_with_tasks(draw: st.DrawFn) -> Source:
    source = draw(sources())
    num_tasks = draw(st.integers(1, 4))
    tasks = [draw(st.integers(0, num_tasks - 1)) for _ in range(len(source.train))]
    return dataclasses.replace(source, train=dataclasses.replace(source.train, tasks=tasks))


@settings(deadline=None, max_examples=200)
@given(sources_with_tasks(), SEEDS)
def test_given_tasks_are_taken_and_test_images_follow_their_class(source, seed):
    tasks = list(source.train.tasks)
    home = {}
    for target in set(source.train.targets):
        own = [
            task for other, task in zip(source.train.targets, tasks, strict=True) if other == target
        ]
        home[target] = min(set(own), key=lambda task: (-own.count(task), task))
    expected = [home[target] for target in source.test.targets]
    last = max(*tasks, *expected)
    if set(tasks) != set(range(last + 1)) or set(expected) != set(range(last + 1)):
        with pytest.raises(
            UserError,
            match=r"every task needs at least one (training|test) image, task \d has none",
        ):
            blurred(source, seed, num_tasks=None)
        return
    partition = blurred(source, seed, num_tasks=None)
    assert task_of_each(partition.train) == dict(enumerate(tasks))
    assert task_of_each(partition.test) == dict(enumerate(expected))
    check_labels(source, partition)


def test_sizes_of_given_tasks_are_refused():
    source = many(20)
    tasks = dataclasses.replace(source.train, tasks=[index // 10 for index in range(20)])
    source = dataclasses.replace(source, train=tasks)
    with pytest.raises(
        UserError, match=r"num_tasks=5, but stream many comes in 2 tasks of its own; leave .* null"
    ):
        blurred(source)
    with pytest.raises(UserError, match=r"stream\.classes_per_task has no meaning for stream many"):
        blurred(source, classes_per_task=[5, 5])
    with pytest.raises(UserError, match=r"stream\.disjoint_classes has no meaning for stream many"):
        blurred(source, num_tasks=None, disjoint_classes=0.5)
