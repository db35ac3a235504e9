from __future__ import annotations

from typing import Any

import numpy
import pytest
from sklearn.datasets import load_digits

from smope.streams import digits
from smope.streams.pixels.preload import preload_images
from smope.streams.stream import build_stream


@pytest.fixture(scope="module")
def source():
    return digits.load()


def test_split_is_stratified_and_complete(source):
    counts = numpy.bincount(load_digits().target)
    train, test = numpy.bincount(source.train.targets), numpy.bincount(source.test.targets)
    assert (train + test == counts).all() and (test == counts // 5).all()
    assert len(source.train.targets) + len(source.test.targets) == 1797
    assert source.class_names == tuple("0123456789")


def test_split_and_hash_are_fixed(source):
    again = digits.load()
    assert preload_images(again).content_hash == preload_images(source).content_hash
    assert list(again.test.targets) == list(source.test.targets)
    assert numpy.array_equal(again.test.pixels(7), source.test.pixels(7))


def test_pictures_are_the_scans_enlarged(source):
    scan = load_digits().images[0]
    picture = numpy.asarray(source.train.pixels(0))
    assert picture.shape == (32, 32, 3) and picture.dtype == numpy.uint8
    assert (picture == picture[:, :, :1]).all()
    means = picture[:, :, 0].reshape(8, 4, 8, 4).mean(axis=(1, 3)) / 255 * 16
    assert numpy.corrcoef(means.ravel(), scan.ravel())[0, 1] > 0.97
    assert numpy.asarray(digits.enlarged(numpy.full((8, 8), 16.0))).min() == 255
    assert numpy.asarray(digits.enlarged(numpy.zeros((8, 8)))).max() == 0


def test_no_seed_changes_the_split(source):
    streams = [
        build_stream(
            source,
            image_size=32,
            seed=seed,
            num_tasks=5,
            classes_per_task=None,
            class_order="paper",
            crop_scale=[0.6, 1.0],
            flip=False,
            eval_crop=1.0,
        )
        for seed in (0, 1)
    ]
    assert streams[0].class_order != streams[1].class_order
    tests = [{i for task in stream.tasks for i in task.test.source_index} for stream in streams]
    assert tests[0] == tests[1] == set(range(len(source.test.targets)))
    assert [len(task.classes) for task in streams[0].tasks] == [2] * 5


@pytest.mark.parametrize("moved", [False, True])
def test_the_table_is_that_of_scikit_learn(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: Any = load_digits()
    if moved:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    digits._table.cache_clear()
    table = digits.read_table()
    assert (table[:, :64] == expected.data).all() and (table[:, 64] == expected.target).all()
