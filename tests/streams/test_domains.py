from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from smope.errors import UserError
from smope.streams import domains
from smope.streams.pixels.preload import preload_images
from smope.streams.stream import build_stream


@pytest.fixture
def root(tmp_path, write_image) -> Path:
    """Three domains of two classes: 2, 3 and 4 training images a class, one test image each."""
    place = tmp_path / "pictures"
    for number, domain in enumerate(("photo", "sketch", "art")):
        for label, name in enumerate(("cat", "dog")):
            for i in range(number + 2):
                write_image(
                    place / domain / "train" / name / f"{i}.png", 100 * number + 10 * label + i
                )
            write_image(place / domain / "test" / name / "9.jpg", 100 * number + 10 * label + 9)
    return place


def stream_of(root: Path, **options):
    source = domains.load(str(root), options.pop("domains", None))
    values = {"image_size": 16, "seed": 0, "num_tasks": None, "crop_scale": None, "flip": False}
    return build_stream(source, **(values | options))


def test_a_task_a_domain_by_name(root, pixels):
    source = domains.load(str(root))
    assert source.name == "domains" and source.class_names == ("cat", "dog")
    assert source.task_names == ("art", "photo", "sketch")
    assert list(source.train.tasks) == [0] * 8 + [1] * 4 + [2] * 6 and list(source.test.tasks) == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert list(source.train.targets) == [0] * 4 + [1] * 4 + [0, 0, 1, 1] + [0] * 3 + [1] * 3
    assert [source.train.pixels(i).tobytes() for i in (0, 7, 8, 17)] == [
        pixels(seed).tobytes() for seed in (200, 213, 0, 112)
    ]
    assert source.test.images[2] == root / "photo" / "test" / "cat" / "9.jpg"


def test_the_stream(root):
    stream = stream_of(root, class_order=[1, 0])
    assert [task.name for task in stream.tasks] == ["art", "photo", "sketch"]
    assert [task.class_names for task in stream.tasks] == [("dog", "cat")] * 3
    assert [(len(task.train), len(task.test)) for task in stream.tasks] == [(8, 2), (4, 2), (6, 2)]
    assert sorted(stream.tasks[1].train.targets) == [0, 0, 1, 1]


def test_domains_and_their_order_can_be_chosen(root):
    source = domains.load(str(root), ["sketch", "art"])
    assert source.task_names == ("sketch", "art")
    assert list(source.train.tasks) == [0] * 6 + [1] * 8
    assert (
        preload_images(source).content_hash
        != preload_images(domains.load(str(root), ["art", "sketch"])).content_hash
    )
    assert stream_of(root, domains=["photo"]).tasks[0].name == "photo"


def test_numbered_domains_come_by_number(root):
    for old, new in (("art", "10"), ("photo", "2"), ("sketch", "1")):
        os.rename(root / old, root / new)
    assert domains.load(str(root)).task_names == ("1", "2", "10")
    assert domains.load(str(root), [10, "2"]).task_names == ("10", "2")


def test_validation_images_come_from_each_domain(root):
    stream = stream_of(root, validation_fraction=0.3)
    assert [(len(task.train), len(task.test)) for task in stream.tasks] == [(6, 2), (2, 2), (4, 2)]
    assert [sorted(task.test.targets) for task in stream.tasks] == [[0, 1]] * 3


def refused(place: Path | str, message: str, chosen: list[int | str] | None = None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        domains.load(str(place), chosen)
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_empty_roots(root, tmp_path):
    refused(tmp_path / "nowhere", r"does not exist")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty",
        r"is empty; give a directory that holds <domain>/train/<class>/ and "
        r"<domain>/test/<class>/ with image files$",
    )


def test_wrong_levels_name_the_right_one(root):
    right = rf"must hold <domain>/train/<class>/ and .*; stream\.root={root} looks right$"
    refused(
        root.parent,
        rf"holds pictures, no folder with train and test in it; stream\.root={root} looks right$",
    )
    refused(
        root / "photo",
        r"it holds test, train as a single domain does, and stream=folder takes that; stream\.root",
    )
    refused(root / "photo", right)
    refused(root / "photo" / "train", right)
    refused(root / "photo" / "train" / "cat", right)


def test_a_data_set_without_domains(root, tmp_path):
    shutil.copytree(root / "photo", tmp_path / "alone" / "photo")
    refused(tmp_path / "alone" / "photo", r"as a single domain does, and stream=folder takes that$")


def test_domains_without_splits(root):
    for domain in ("art", "photo", "sketch"):
        shutil.rmtree(root / domain / "test")
        for name in ("cat", "dog"):
            os.rename(root / domain / "train" / name, root / domain / name)
        (root / domain / "train").rmdir()
    refused(
        root,
        r"holds art, photo, sketch, no folder with train and test in it; give .* or divide the "
        r"images of each",
    )


def test_half_extracted_domains_are_named(root):
    shutil.rmtree(root / "photo" / "test")
    refused(root, r"domain photo has no folder test; add it, or .* stream\.domains=\[art,sketch\]$")
    assert domains.load(str(root), ["art", "sketch"]).task_names == ("art", "sketch")
    (root / "labels").mkdir()
    refused(root, r"domain labels has no folder train and no folder test; add")


def test_domains_must_hold_the_same_classes(root):
    os.rename(root / "sketch" / "train" / "dog", root / "sketch" / "train" / "fox")
    refused(
        root,
        r"every domain must hold the same classes in train and test, but domain sketch has no "
        r"train/dog and domain art "
        r"has train/dog; add it with images, remove class dog from all domains, or choose domains "
        r"with stream\.domains",
    )
    shutil.rmtree(root / "sketch" / "test" / "dog")
    shutil.rmtree(root / "sketch" / "train" / "fox")
    refused(root, r"domain sketch has no train/dog and")


def test_a_class_of_one_domain_only(root, write_image):
    write_image(root / "photo" / "train" / "fox" / "0.png")
    refused(root, r"but domain art has no train/fox and domain photo has train/fox; add it")
    assert domains.load(str(root), ["art", "sketch"]).class_names == ("cat", "dog")


def test_a_class_without_images_names_the_domain(root):
    (root / "sketch" / "test" / "dog" / "9.jpg").unlink()
    refused(root, r"class folder .*/sketch/test/dog has no image files")


def test_domains_without_classes(root):
    for domain in ("art", "photo", "sketch"):
        for split in ("train", "test"):
            shutil.rmtree(root / domain / split)
            (root / domain / split).mkdir()
    refused(root, r"its domains have no class folders, add one a class$")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            ["photos", "art"],
            r"has no domain photos, it has art, photo, sketch; did you mean photo\?$",
        ),
        (["x"], r"has no domain x, it has art, photo, sketch$"),
    ],
)
def test_unknown_domains(root, chosen, message):
    refused(root, message, chosen)


@pytest.mark.parametrize("chosen", [[], ["art", "photo", "art"]])
def test_repeated_or_no_domains(root, chosen):
    with pytest.raises(
        UserError,
        match=r"stream\.domains must name each domain once, got \[.*choose from \[art,photo,",
    ):
        domains.load(str(root), chosen)


def test_broken_images_name_their_domain(root):
    (root / "sketch" / "train" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"stream domains: cannot read image .*/sketch/train/dog/1\.png"
    ):
        preload_images(domains.load(str(root)))


def test_numbers_of_tasks_are_refused(root):
    with pytest.raises(
        UserError, match=r"stream\.num_tasks=2, but stream domains comes in 3 tasks of its own"
    ):
        stream_of(root, num_tasks=2)
    with pytest.raises(
        UserError, match=r"stream\.classes_per_task has no meaning for stream domains"
    ):
        stream_of(root, num_tasks=2, classes_per_task=[1, 1])
