from __future__ import annotations

import dataclasses
import json
import pickle
import random
import subprocess
import sys

import numpy
import pytest
import torch
from avalanche.benchmarks import AvalancheDataset
from torch.utils.data import DataLoader

from smope.errors import UserError
from smope.seeding import stable_seed
from smope.streams.pixels.preload import preload_images
from smope.streams.pixels.transforms import collate, resample
from smope.streams.task_images import TaskImages


@pytest.mark.parametrize("sizes", [None, [4, 1, 3, 2], [10]])
@pytest.mark.parametrize("order", ["paper", "pilot", "sorted", [9, 0, 8, 1, 7, 2, 6, 3, 5, 4]])
def test_partition_equals_a_slow_one(source, build, sizes, order):
    stream = build(classes_per_task=sizes, class_order=order)
    assert len(stream.tasks) == len(sizes or [2] * 5)
    first = 0
    for index, task in enumerate(stream.tasks):
        size = (sizes or [2] * 5)[index]
        classes = list(range(first, first + size))
        first += size
        assert task.index == index and task.classes == tuple(classes)
        assert list(task.class_names) == [
            source.class_names[stream.class_order[label]] for label in classes
        ]
        for images, original in (
            (task.train, source.train),
            (task.train_plain, source.train),
            (task.test, source.test),
        ):
            expected = {
                (i, label)
                for label in classes
                for i, class_id in enumerate(original.targets)
                if class_id == stream.class_order[label]
            }
            assert len(images) == len(expected)
            assert set(zip(images.source_index, images.targets, strict=True)) == expected
    assert first == 10
    assert stream.class_names == tuple(source.class_names[i] for i in stream.class_order)
    assert (
        stream.content_hash == preload_images(source).content_hash and stream.evaluated_on == "test"
    )


def test_items_are_the_sources_images(source, build):
    for task in build().tasks:
        for images, original in ((task.train_plain, source.train), (task.test, source.test)):
            for item in range(len(images)):
                image, label = images[item]
                assert label == images.targets[item] and label in task.classes
                pixels = original.pixels(images.source_index[item])
                assert torch.equal(image, torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255)


def test_labels_of_numpy_sources_are_plain_ints(source, build):
    train = dataclasses.replace(source.train, targets=numpy.asarray(source.train.targets))
    task = build(source=dataclasses.replace(source, train=train)).tasks[0]
    assert json.dumps([*task.train.targets, *task.train.source_index, task.classes])
    assert type(task.train[0][1]) is int


def test_building_leaves_random_generators_alone(build):
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tobytes()
    build()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), numpy.random.get_state()[1].tobytes()) == states[1:]


def drawn(images: TaskImages, **options) -> dict[int, torch.Tensor]:
    """Every image of a pass through a loader, by its index in the source."""
    sampler = options.pop("sampler", range(len(images)))
    batches = list(DataLoader(images, batch_size=3, sampler=sampler, **options))
    pictures = torch.cat([batch[0] for batch in batches])
    assert torch.cat([batch[1] for batch in batches]).tolist() == [
        images.targets[i] for i in sampler
    ]
    return {images.source_index[i]: picture for i, picture in zip(sampler, pictures, strict=True)}


def same(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[i], b[i]) for i in a)


def test_augmentation_depends_on_seed_epoch_and_image_only(source, build):
    images = build(num_tasks=1).tasks[0].train
    images.set_epoch(3)
    first = drawn(images)
    order = list(range(len(images)))[::-1]
    assert same(first, drawn(images, sampler=order))
    assert same(first, drawn(images, sampler=order, num_workers=2))
    torch.manual_seed(99)
    torch.rand(5)
    assert same(first, drawn(images))
    other_order = build(num_tasks=1, class_order="sorted").tasks[0].train
    other_order.set_epoch(3)
    assert same(first, drawn(other_order))
    tasks = [task.train for task in build().tasks]
    for task in tasks:
        task.set_epoch(3)
    assert same(first, {i: picture for task in tasks for i, picture in drawn(task).items()})
    images.set_epoch(4)
    assert not same(first, drawn(images))
    images.set_epoch(3)
    assert same(first, drawn(images))
    other_seed = build(num_tasks=1, seed=1).tasks[0].train
    other_seed.set_epoch(3)
    assert not same(first, drawn(other_seed))


def test_workers_see_the_epoch(build):
    images = build(num_tasks=1).tasks[0].train
    loader = DataLoader(images, batch_size=40, num_workers=1)
    passes = []
    for epoch in (0, 1):
        images.set_epoch(epoch)
        passes.append(next(iter(loader))[0])
    assert not torch.equal(*passes)
    assert torch.equal(passes[1], torch.stack([images[i][0] for i in range(40)]))


def test_equal_pictures_are_augmented_independently(source, build):
    one = dataclasses.replace(source.train, images=[source.train.images[0]] * len(source.train))
    images = build(source=dataclasses.replace(source, train=one), num_tasks=1).tasks[0].train
    # of pictures as small as these, two may happen to be cut alike
    assert len({picture.numpy().tobytes() for picture in drawn(images).values()}) >= len(images) - 2


def test_items_leave_all_generators_alone(build, monkeypatch):
    task = build().tasks[0]
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tobytes()
    monkeypatch.setattr(torch, "manual_seed", None)  # it would reseed accelerators as well
    for images in (task.train, task.train_plain, task.test):
        images[0]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), numpy.random.get_state()[1].tobytes()) == states[1:]


def test_unresampled_images_are_the_items_before_resampling(build):
    task = build().tasks[0]
    for images in (task.train, task.train_plain, task.test):
        images.set_epoch(2)
        batch = collate([images.unresampled[i] for i in range(len(images))])
        assert torch.equal(
            resample(batch, 32), torch.stack([images[i][0] for i in range(len(images))])
        )
        assert batch.labels.tolist() == list(images.targets)
        assert len(images.unresampled) == len(images)


def test_evaluation_draws_nothing(build):
    task = build().tasks[0]
    for images in (task.train_plain, task.test):
        images.set_epoch(1)
        first = images[0][0]
        images.set_epoch(2)
        assert torch.equal(images[0][0], first)


def test_seeds_differ_and_stay_the_same():
    seeds = {
        stable_seed(seed, epoch, index)
        for seed in range(3)
        for epoch in range(20)
        for index in range(200)
    }
    assert len(seeds) == 3 * 20 * 200 and all(0 <= seed < 2**63 for seed in seeds)
    assert (
        stable_seed(0, 0, 0) == 9169699564768075551 and stable_seed(1, 2, 3) == 1517167407554927345
    )


def test_tasks_survive_pickling(build):
    images = build().tasks[1].train
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy[2][0], images[2][0])
    assert list(copy.targets) == list(images.targets)


def test_experiences_hold_the_datasets_that_training_uses(build):
    stream = build()
    for task, train, test in zip(
        stream.tasks, stream.benchmark.train_stream, stream.benchmark.test_stream, strict=True
    ):
        assert train.dataset is task.train and test.dataset is task.test
        assert tuple(sorted(train.classes_in_this_experience)) == task.classes
        assert isinstance(task.train, TaskImages) and isinstance(task.train, AvalancheDataset)
        assert list(train.dataset.targets_task_labels) == [0] * len(task.train)


@pytest.mark.parametrize("split", ["train", "test"])
def test_avalanche_shows_both_streams_through_the_right_transforms(build, split):
    stream = build()
    task = stream.tasks[1]
    dataset = getattr(stream.benchmark, f"{split}_stream")[1].dataset
    plain = task.train_plain if split == "train" else task.test
    shown = dataset.eval()
    assert len(shown) == len(plain)
    assert all(torch.equal(shown[i][0], plain[i][0]) for i in range(len(plain)))
    for trained in (dataset.train(), dataset.eval().train()):
        image, label, task_label = trained[0]
        assert not torch.equal(image, plain[0][0]), "cropped at random"
        assert (label, task_label) == (plain.targets[0], 0)


def test_avalanche_s_augmentation_follows_torch_s_generator(build):
    """Strategies know no epochs: each look at an image draws anew, as with torchvision."""
    dataset = build().benchmark.train_stream[0].dataset.train()
    torch.manual_seed(4)
    first, second = dataset[0][0], dataset[0][0]
    torch.manual_seed(4)
    assert not torch.equal(first, second) and torch.equal(first, dataset[0][0])


def test_evaluation_in_avalanche_draws_nothing(build):
    state = torch.get_rng_state()
    dataset = build().benchmark.test_stream[0].dataset
    assert torch.equal(dataset.subset([0])[0][0], dataset[0][0])
    assert torch.equal(torch.get_rng_state(), state)


def test_avalanche_s_subsets_and_concatenations(build):
    first, second = (experience.dataset for experience in build().benchmark.train_stream[:2])
    subset = first.subset([2, 0])
    assert list(subset.targets) == [first.targets[2], first.targets[0]]
    assert list(subset.source_index) == [first.source_index[2], first.source_index[0]]
    both = first.concat(second)
    assert len(both) == len(first) + len(second)
    plain, expected = both.eval(), second.eval()
    assert torch.equal(plain[len(first) + 1][0], expected[1][0])
    assert list(both.targets) == [*first.targets, *second.targets]


def test_avalanche_s_other_operations_work_on_its_own_datasets(build):
    dataset = build().benchmark.train_stream[0].dataset
    relabelled = dataset.update_data_attribute("targets", [7] * len(dataset))
    assert list(relabelled.targets) == [7] * len(dataset) != list(dataset.targets)
    replaced = dataset.replace_current_transform_group(lambda image: image.pixels.shape)
    assert replaced[1] == [(32, 32, 3), dataset.targets[1], 0]
    assert len(dataset[2:6]) == 4 and torch.equal(dataset[2:6][1][0], dataset[3][0])


def test_the_epochs_of_a_task_s_two_sights_are_independent(build):
    task = build().tasks[0]
    task.train.set_epoch(3)
    third = task.train[0][0]
    task.train_plain.set_epoch(1)
    assert torch.equal(task.train[0][0], third)


def test_chosen_and_joined_images_are_drawn_alike(build):
    tasks = build().tasks
    chosen, joined = tasks[1].train.choose([3, 1]), tasks[0].train.join([tasks[1].train])
    for images in (chosen, joined, tasks[1].train):
        images.set_epoch(5)
    assert torch.equal(chosen[0][0], tasks[1].train[3][0])
    assert torch.equal(joined[len(tasks[0].train) + 3][0], tasks[1].train[3][0])


@pytest.mark.filterwarnings("ignore:No loggers specified")
@pytest.mark.parametrize("plugins", ["", "ReplayPlugin", "EWCPlugin", "AGEMPlugin"])
def test_benchmark_serves_an_avalanche_strategy(build, plugins):
    from avalanche.training import Naive
    from avalanche.training import plugins as known
    from avalanche.training.storage_policy import ClassBalancedBuffer

    options = {
        "ReplayPlugin": {"mem_size": 6, "storage_policy": ClassBalancedBuffer(6)},
        "EWCPlugin": {"ewc_lambda": 1.0},
        "AGEMPlugin": {"patterns_per_experience": 4, "sample_size": 4},
    }
    stream = build(num_tasks=2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    before = model[1].weight.detach().clone()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=8,
        eval_mb_size=8,
        plugins=[getattr(known, plugins)(**options[plugins])] if plugins else [],
        evaluator=known.EvaluationPlugin(),
    )
    for experience in stream.benchmark.train_stream:
        strategy.train(experience, num_workers=0)
    strategy.eval(stream.benchmark.test_stream, num_workers=0)
    assert not torch.equal(model[1].weight, before)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_refused(source, build, split):
    images = getattr(source, split)
    fewer = dataclasses.replace(images, targets=[target or 1 for target in images.targets])
    name = "training" if split == "train" else "test"
    with pytest.raises(
        UserError, match=rf"stream pictures: .* at least one {name} image, class 'a' has none; add"
    ):
        build(source=dataclasses.replace(source, **{split: fewer}))


def test_wrong_orders_and_sizes_are_refused(build):
    with pytest.raises(UserError, match=r"stream\.num_tasks=3 does not divide the 10 classes"):
        build(num_tasks=3)
    with pytest.raises(UserError, match=r"stream\.class_order must hold"):
        build(class_order=[0])


def test_they_are_refused_before_an_image_is_decoded(build, monkeypatch):
    monkeypatch.setattr("smope.streams.stream.preload_images", None)
    with pytest.raises(UserError, match=r"stream\.num_tasks=3 does not divide the 10 classes"):
        build(num_tasks=3)
    with pytest.raises(UserError, match=r"stream\.class_order must hold"):
        build(class_order=[0])


def test_content_hash_is_of_contents_and_labels_alone(source):
    digest = preload_images(source).content_hash
    train = source.train
    assert len(digest) == 64
    backwards = range(len(train))[::-1]
    assert (
        preload_images(dataclasses.replace(source, train=train.choose(backwards))).content_hash
        == digest
    )
    for changed in (
        dataclasses.replace(train, targets=[1, *train.targets[1:]]),
        train.choose([*range(len(train)), 0]),
        dataclasses.replace(train, images=[255 - train.images[0], *train.images[1:]]),
        dataclasses.replace(train, tasks=[0] * len(train)),
    ):
        assert preload_images(dataclasses.replace(source, train=changed)).content_hash != digest
    assert (
        preload_images(dataclasses.replace(source, train=source.test, test=train)).content_hash
        != digest
    )


def test_imports_are_late_and_quiet():
    code = """
import sys
import smope.errors, smope.streams
assert "torch" not in sys.modules and "numpy" not in sys.modules
from smope.streams import cifar100, digits, folder
from smope.streams.stream import build_stream
from smope.streams.source import ImageSet, Source
import numpy
assert not {"avalanche", "sklearn", "pyarrow"} & set(sys.modules)
images = ImageSet([0, 1], [numpy.zeros((2, 2, 3), numpy.uint8)] * 2)
build_stream(Source("numbers", ("a", "b"), images, images), image_size=32, seed=0, num_tasks=2,
             classes_per_task=None, class_order="paper", crop_scale=None, flip=False, eval_crop=1.0)
assert "avalanche" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "QP solver" not in done.stderr + done.stdout


def test_only_building_a_stream_imports_avalanche():
    code = """
import sys
import smope.audit.checks, smope.planning.measuring, smope.run.train, smope.serving.predict
import smope.training.trainer
assert "avalanche" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
