from __future__ import annotations

import dataclasses
import os

import numpy
import pytest

from smope.errors import UserError
from smope.streams.pixels import preload
from smope.streams.pixels.preload import preload_images
from smope.streams.source import ImageSet, Source
from smope.streams.stream import build_stream


@pytest.fixture
def files(tmp_path, write_image) -> Source:
    """Two classes of three training and two test images, as paths and as bytes."""
    paths = [write_image(tmp_path / "train" / f"{i}.png", i, 10 + i, 7) for i in range(6)]
    contents = [write_image(tmp_path / "test" / f"{i}.jpg", 10 + i).read_bytes() for i in range(4)]
    names = [f"row {i} of test.parquet" for i in range(4)]
    return Source(
        "photos",
        ("cat", "dog"),
        ImageSet([0, 1] * 3, paths),
        ImageSet([0, 0, 1, 1], contents, names),
        facts={"a": 1},
    )


def same(a: ImageSet, b: ImageSet) -> bool:
    return list(a.targets) == list(b.targets) and all(
        numpy.array_equal(a.pixels(i), b.pixels(i)) for i in range(len(a))
    )


def test_small_sources_are_kept_as_pixels(files):
    found = preload_images(files)
    assert found.skipped == () and found.source.facts == {"a": 1}
    for split in ("train", "test"):
        images = getattr(found.source, split)
        assert all(isinstance(image, numpy.ndarray) for image in images.images)
        assert same(images, getattr(files, split))
        names = [getattr(files, split).name(i) for i in range(len(images))]
        assert [images.name(i) for i in range(len(images))] == names, "reports name the files"


def test_large_ones_stay_where_they_are(files, monkeypatch):
    pixels = preload_images(files)
    size = sum(
        image.nbytes
        for split in (pixels.source.train, pixels.source.test)
        for image in split.images
    )
    for limit, kept in ((size, True), (size - 1, False), (0, False)):
        monkeypatch.setattr(preload, "MEMORY_LIMIT_BYTES", limit)
        found = preload_images(files)
        assert found.content_hash == pixels.content_hash
        for split in ("train", "test"):
            images = getattr(found.source, split)
            assert all(isinstance(image, numpy.ndarray) for image in images.images) == kept
            assert same(images, getattr(files, split))


def test_the_hash_does_not_know_where_an_image_was(files):
    as_bytes = [path.read_bytes() for path in files.train.images]
    other = dataclasses.replace(files, train=ImageSet(files.train.targets, as_bytes))
    assert preload_images(other).content_hash == preload_images(files).content_hash
    moved = dataclasses.replace(files, train=files.test, test=files.train)
    assert preload_images(moved).content_hash != preload_images(files).content_hash


def test_broken_images_are_named_or_skipped(files, caplog):
    files.train.images[1].write_text("no image")
    broken = dataclasses.replace(
        files, test=dataclasses.replace(files.test, images=[b"", *files.test.images[1:]])
    )
    way_out = "replace the file or remove it, or set stream.broken_images=skip"
    with pytest.raises(
        UserError,
        match=rf"stream photos: cannot read image .*train/1\.png: not a known image .*{way_out}",
    ):
        preload_images(broken)
    found = preload_images(broken, "skip")
    assert found.skipped == (str(files.train.images[1]), "row 0 of test.parquet")
    (message,) = caplog.messages
    assert message.startswith("stream photos: images that cannot be read are left out: 2, such as")
    assert list(found.source.train.targets) == [0, 0, 1, 0, 1] and list(
        found.source.test.targets
    ) == [0, 1, 1]
    assert same(found.source.train, files.train.choose([0, 2, 3, 4, 5]))
    os.unlink(files.train.images[1])
    with pytest.raises(UserError, match=r"cannot read image .*train/1\.png: .*No such file"):
        preload_images(files)


def test_a_skipped_image_is_skipped_in_its_stream(files):
    files.train.images[1].write_text("no image")
    stream = build_stream(
        files, image_size=8, seed=0, num_tasks=2, class_order="sorted", broken_images="skip"
    )
    assert [len(task.train) for task in stream.tasks] == [3, 2]
    assert stream.skipped == (str(files.train.images[1]),)
    files.train.images[3].write_text("no image")
    files.train.images[5].write_text("no image")
    with pytest.raises(UserError, match=r"at least one training image, class 'dog' has none"):
        build_stream(
            files, image_size=8, seed=0, num_tasks=2, class_order="sorted", broken_images="skip"
        )


@pytest.mark.parametrize("label", [-1, 2, 10**12])
@pytest.mark.parametrize(("split", "word"), [("train", "training"), ("test", "test")])
def test_labels_of_classes_that_there_are_not(label, split, word):
    sets = {
        name: ImageSet([0, 1], [numpy.zeros((4, 4, 3), numpy.uint8)] * 2)
        for name in ("train", "test")
    }
    sets[split] = ImageSet([0, 1, label], [numpy.zeros((4, 4, 3), numpy.uint8)] * 3)
    message = (
        rf"stream pets: {word} image number 2 has label {label}, and the classes are "
        r"0\.\.1; correct the labels"
    )
    with pytest.raises(UserError, match=message):
        Source("pets", ("cat", "dog"), sets["train"], sets["test"])
