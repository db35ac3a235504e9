"""What ImageNet-R and ImageNet-A have in common: layouts, the split that is drawn, wrong
directories, the archive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import tarfile
from pathlib import Path

import pytest

from smope.errors import UserError
from smope.streams import imagenet_a, imagenet_r
from smope.streams.pixels.preload import preload_images
from smope.streams.source import Source
from tests.streams.imagenet_trees import (
    STYLES,
    content,
    wnids,
    write_archive,
    write_classes,
    write_hub_ids,
    write_hub_texts,
)


@pytest.fixture(scope="module", params=[imagenet_r, imagenet_a], ids=["r", "a"])
def stream(request):
    return request.param


@pytest.fixture(scope="module")
def tree(stream, tmp_path_factory) -> Path:
    """The folder with what the archive unpacks to; not to be changed."""
    root = tmp_path_factory.mktemp("tree")
    write_archive(root, stream.VARIANT)
    return root


def places(source: Source, split: str) -> set[str]:
    return {"/".join(Path(image).parts[-2:]) for image in getattr(source, split).images}


def check_whole(source: Source, train_a_class: int = 4) -> None:
    """Every image once, with the class of its place in sorted order."""
    known = {
        content(class_id, number): class_id
        for class_id in range(200)
        for number in range(len(STYLES))
    }
    found = []
    for images, count in ((source.train, train_a_class), (source.test, 5 - train_a_class)):
        assert sorted(images.targets) == sorted(list(range(200)) * count)
        for target, image in zip(images.targets, images.images, strict=True):
            encoded = image.read_bytes() if isinstance(image, Path) else image
            assert type(target) is int and known[encoded] == target
            found.append(encoded)
    assert set(found) == set(known) and len(found) == len(known)


def refused(stream, place: Path, message: str, **options) -> None:
    with pytest.raises(UserError, match=message) as caught:
        stream.load(str(place), **options)
    assert str(caught.value).startswith(f"stream.root={place} ") and "\n" not in str(caught.value)


def test_what_the_archive_unpacks_to(stream, tree):
    source = stream.load(str(tree))
    check_whole(source)
    assert (
        source.name == stream.VARIANT.name
        and source.task_names is None
        and source.train.tasks is None
    )
    assert source.class_names[:4] == (
        "name 0",
        "name 1",
        "name 2",
        f"great_white_shark ({wnids(stream.VARIANT)[3]})",
    )
    assert len(set(source.class_names)) == 200
    assert source == stream.load(str(tree / stream.VARIANT.top))
    assert (
        preload_images(source).content_hash
        == preload_images(stream.load(str(tree / stream.VARIANT.top))).content_hash
    )


def test_the_split_is_drawn_with_its_seed(stream, tree):
    drawn = [stream.load(str(tree), split_seed=seed) for seed in (0, 0, 1)]
    assert [places(source, "test") == places(drawn[0], "test") for source in drawn] == [
        True,
        True,
        False,
    ]
    assert drawn[0].facts.keys() == {
        "split",
        "split_seed",
        "test_fraction",
        "split_hash",
    }
    assert [(source.facts["split"], source.facts["split_seed"]) for source in drawn] == [
        ("drawn", s) for s in (0, 0, 1)
    ]
    lines = sorted(
        f"{split}\t{place}\n" for split in ("train", "test") for place in places(drawn[0], split)
    )
    assert drawn[0].facts["split_hash"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert drawn[2].facts["split_hash"] != drawn[0].facts["split_hash"]


def test_the_split_follows_no_path_and_no_layout(stream, tree, tmp_path):
    shutil.copytree(tree / stream.VARIANT.top, tmp_path / "elsewhere")
    write_hub_texts(tmp_path / "hub", wnids(stream.VARIANT))
    expected = stream.load(str(tree))
    moved, table = stream.load(str(tmp_path / "elsewhere")), stream.load(str(tmp_path / "hub"))
    assert expected.facts == moved.facts == table.facts
    check_whole(table)
    contents = [
        [image.read_bytes() for image in source.test.images] for source in (expected, moved)
    ]
    assert contents[0] == contents[1] == list(table.test.images)


def test_without_a_readme_classes_are_called_by_their_wnids(stream, tmp_path):
    write_classes(tmp_path, wnids(stream.VARIANT), [0, 1])
    assert stream.load(str(tmp_path)).class_names == tuple(wnids(stream.VARIANT))


@pytest.mark.parametrize("names", [None, [f"{i}" for i in range(200)]], ids=["wnids", "numbers"])
@pytest.mark.parametrize("parent", [False, True])
def test_folders_train_and_test_are_a_split(stream, tmp_path, names, parent):
    names = names or wnids(stream.VARIANT)
    place = tmp_path / stream.VARIANT.top if parent else tmp_path
    write_classes(place / "train", names, [0, 2, 4])
    write_classes(place / "test", names, [1, 3])
    source = stream.load(str(tmp_path), split_seed=3)
    check_whole(source, 3)
    assert source.class_names == tuple(names)
    assert {path.name for path in source.test.images} == {STYLES[1], STYLES[3]}
    assert source.facts["split"] == "as on disk" and "split_seed" not in source.facts


def test_parquet_of_the_hub_with_texts(stream, tmp_path):
    place = write_hub_texts(tmp_path, wnids(stream.VARIANT))
    source = stream.load(str(tmp_path))
    assert source.class_names[:2] == ("word 0", "word 1")
    assert source.train.name(0).startswith("row ") and source.train.name(0).endswith(".parquet")
    assert source == stream.load(str(place))
    assert len(preload_images(source).source.train) == 800


def test_parquet_of_the_hub_with_class_ids(stream, tmp_path):
    write_hub_ids(tmp_path, wnids(stream.VARIANT), ["train"])
    source = stream.load(str(tmp_path))
    check_whole(source)
    assert source.class_names == tuple(wnids(stream.VARIANT)) and source.facts["split"] == "drawn"
    write_hub_ids(tmp_path, wnids(stream.VARIANT), ["test"])
    both = stream.load(str(tmp_path))
    assert (len(both.train), len(both.test), both.facts["split"]) == (1000, 1000, "as on disk")


def test_parquet_that_cannot_be_used(stream, tmp_path):
    write_hub_ids(tmp_path / "unnamed", wnids(stream.VARIANT), ["train"], named=False)
    refused(
        stream,
        tmp_path / "unnamed",
        r"parquet has class ids that the Hub's metadata in it does not name",
    )
    place = write_hub_texts(tmp_path / "half", wnids(stream.VARIANT), shards=3)
    next(place.glob("*-00001-*")).unlink()
    refused(stream, tmp_path / "half", r"which is not each of 3 files once; get the missing ones")


def test_wrong_directories_are_refused(stream, tmp_path):
    top, archive = stream.VARIANT.top, stream.VARIANT.archive
    way = (
        rf"stream\.download=true fetches {archive.url} \(\d,?\d\d\d "
        r"MB\)|stream\.download=true fetches .* \(688 MB\)"
    )
    refused(stream, tmp_path / "nowhere", rf"does not exist .*; ({way})")
    (tmp_path / "empty").mkdir()
    refused(
        stream,
        tmp_path / "empty",
        rf"is empty; give a directory that holds the archive as it unpacks \({top}/",
    )
    refused(stream, tmp_path / "empty", way)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.jpg").write_bytes(content(0, 0))
    refused(
        stream,
        tmp_path / "pictures",
        rf"is no complete {stream.VARIANT.title}: it holds one\.jpg; accepted are the archive as "
        rf"it unpacks \({top}/"
        rf"<wnid>/ or the <wnid>/ folders themselves\), class folders train/<class>/ and "
        rf"test/<class>/, or parquet "
        rf"files of the Hub \(in data/ or test/\); ({way})",
    )
    refused(stream, tmp_path / "pictures" / "one.jpg", r"is a file, not a directory", download=True)
    (tmp_path / "pictures" / archive.filename).write_bytes(b"")
    refused(stream, tmp_path / "pictures", rf"it holds .*; unpack {archive.filename}; accepted")


def test_wrong_levels_name_the_right_one(stream, tree, tmp_path):
    top = stream.VARIANT.top
    child = tree / top / stream.VARIANT.first_wnid
    refused(
        stream, child, rf"it holds art_0\.jpg, .*; stream\.root={tree / top} or {tree} looks right"
    )
    twice = tmp_path / top
    shutil.copytree(tree / top, twice / top)
    refused(stream, tmp_path, rf"stream\.root={twice} looks right")
    other = next(module.VARIANT for module in (imagenet_r, imagenet_a) if module is not stream)
    (tmp_path / "data").mkdir()
    twice.rename(tmp_path / "data" / "copy")
    write_classes(tmp_path / "data" / other.top, wnids(other), [0])
    write_classes(tmp_path / "data" / "own" / "train", ["cat", "dog"], [0])
    write_classes(tmp_path / "data" / "own" / "test", ["cat", "dog"], [1])
    refused(
        stream,
        tmp_path / "data",
        rf"it holds copy, .*; stream\.root={tmp_path / 'data' / 'copy'} looks right",
    )


def test_one_of_the_two_folders_is_not_the_data_set(stream, tmp_path):
    for split, numbers in (("train", [0, 1]), ("test", [2])):
        write_classes(tmp_path / split, wnids(stream.VARIANT), numbers)
    for split in ("train", "test"):
        text = rf"it is one of two folders, train and test; stream\.root={tmp_path} looks right"
        refused(stream, tmp_path / split, text)


def test_half_an_archive(stream, tmp_path):
    write_archive(tmp_path, stream.VARIANT)
    place = tmp_path / stream.VARIANT.top
    last = wnids(stream.VARIANT)[-1]
    for path in (place / last).iterdir():
        path.unlink()
    text = (
        rf"{stream.VARIANT.top} has images of 199 classes instead of 200 \(if it was "
        r"unpacked only in part, unpack"
    )
    refused(
        stream,
        tmp_path,
        rf"{text} {stream.VARIANT.archive.filename} again; stream=folder takes any classes\)",
    )
    (place / last).rmdir()
    refused(stream, tmp_path, text, download=True)


def test_the_other_data_set_is_noticed(stream, tmp_path):
    other = next(module.VARIANT for module in (imagenet_r, imagenet_a) if module is not stream)
    write_classes(tmp_path, wnids(other), [0, 1])
    text = (
        rf"is {other.first_wnid} instead of {stream.VARIANT.first_wnid}, so this is "
        r"another data set"
    )
    refused(stream, tmp_path, text)


def test_another_number_of_images_is_warned_of(stream, tree, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        stream.load(str(tree))
    published = {"imagenet_r": "30,000", "imagenet_a": "7,500"}[stream.VARIANT.name]
    assert f"has 1,000 images instead of the {published} of {stream.VARIANT.title}" in caplog.text
    caplog.clear()
    monkeypatch.setattr(stream, "VARIANT", dataclasses.replace(stream.VARIANT, num_images=1000))
    with caplog.at_level(logging.WARNING):
        stream.load(str(tree))
    assert not caplog.text


def test_the_archive_is_unpacked_only_when_asked(stream, tree, tmp_path, monkeypatch):
    path = tmp_path / stream.VARIANT.archive.filename
    with tarfile.open(path, "w") as whole:
        whole.add(tree / stream.VARIANT.top, stream.VARIANT.top)
    packed = path.read_bytes()
    md5 = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    archive = dataclasses.replace(stream.VARIANT.archive, md5=md5, size=len(packed))
    monkeypatch.setattr(stream, "VARIANT", dataclasses.replace(stream.VARIANT, archive=archive))
    refused(
        stream,
        tmp_path,
        rf"unpack {archive.filename}; .*stream\.download=true fetches {archive.url}",
    )
    check_whole(stream.load(str(tmp_path), download=True))
    path.unlink()
    check_whole(stream.load(str(tmp_path), download=True))
    path.write_bytes(b"half")
    shutil.rmtree(tmp_path / stream.VARIANT.top)
    with pytest.raises(
        UserError, match=rf"{archive.filename} has 4 bytes instead of {len(packed):,}"
    ):
        stream.load(str(tmp_path), download=True)
