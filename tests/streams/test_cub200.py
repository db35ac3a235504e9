from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from smope.errors import UserError
from smope.streams import cub200
from smope.streams.archives.download import Archive
from smope.streams.pixels.preload import preload_images
from smope.streams.stream import build_stream
from tests.streams.class_trees import NUMBERS, check_whole, write, write_classes, write_parquet

NAMES = cub200.CLASS_NAMES
NUMBERED = [f"{number:03d}.{name}" for number, name in enumerate(NAMES, start=1)]
LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
RULE = (
    r"accepted are the archive as it unpacks \(CUB_200_2011/ or the folder above it\), "
    r"class folders train/<class>/"
)


def write_archive(root: Path, ends: str = "\n", mark: str = "") -> Path:
    """What the archive unpacks to: images numbered class by class, with a file too many, and
    attributes beside.
    """
    place = root / "CUB_200_2011"
    lists: dict[str, list[str]] = {name: [] for name in (*LISTS, "classes.txt")}
    number = 0
    for class_id, name in enumerate(NUMBERED):
        lists["classes.txt"].append(f"{class_id + 1} {name}")
        for index in (1, 2, 0):
            number += 1
            path = write(
                place / "images" / name / f"{NAMES[class_id]}_{index:04d}_{number}.jpg",
                class_id,
                index,
            )
            lists["images.txt"].append(f"{number} {path.relative_to(place / 'images').as_posix()}")
            lists["image_class_labels.txt"].append(f"{number} {class_id + 1}")
            lists["train_test_split.txt"].append(f"{number} {int(index in NUMBERS['train'])}")
    for name, lines in lists.items():
        (place / name).write_text(
            mark + ends.join([*lines, ""]) + ends * 2, encoding="utf-8", newline=""
        )
    write(place / "images" / NUMBERED[0] / "stray_rgb.jpg", 0, 0)
    (root / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    return place


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """What the archive unpacks to; not to be changed."""
    return write_archive(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def place(tree, tmp_path) -> Path:
    """A copy of the tree that a test may change."""
    return Path(shutil.copytree(tree, tmp_path / "CUB_200_2011"))


def test_the_archives_layout(tree, place):
    source = cub200.load(str(tree))
    check_whole(source)
    assert source.name == "cub200" and source.class_names == NAMES and len(set(NAMES)) == 200
    assert (NAMES[0], NAMES[21], NAMES[199]) == (
        "Black_footed_Albatross",
        "Chuck_will_Widow",
        "Common_Yellowthroat",
    )
    check_whole(cub200.load(str(tree.parent)))
    check_whole(cub200.load(str(place.rename(place.with_name("birds")))))


@pytest.mark.parametrize(
    ("ends", "mark"), [("\r\n", ""), ("\r\n", "\ufeff"), ("\n", "\ufeff"), ("\r", "")]
)
def test_lists_from_other_systems(tmp_path, ends, mark):
    check_whole(cub200.load(str(write_archive(tmp_path, ends, mark))))


@pytest.mark.parametrize(
    "names", [NUMBERED, NAMES, [name.replace("_", " ").lower() for name in NAMES]]
)
def test_class_folders(tmp_path, names):
    for split, numbers in NUMBERS.items():
        write_classes(tmp_path / "cub" / split, names, numbers)
    (tmp_path / "cub" / "train" / "empty").mkdir()
    check_whole(cub200.load(str(tmp_path / "cub")))
    (tmp_path / "cub").rename(tmp_path / "CUB_200_2011")
    check_whole(cub200.load(str(tmp_path)))


@pytest.mark.parametrize("labels", [NUMBERED, sorted(NUMBERED, key=lambda name: name[4:])])
def test_parquet(tmp_path, labels):
    write_parquet(tmp_path / "data", NUMBERED, labels)
    check_whole(cub200.load(str(tmp_path)))
    check_whole(cub200.load(str(tmp_path / "data")))


def test_parquet_with_names_alone(tmp_path):
    check_whole(cub200.load(str(write_parquet(tmp_path / "data", NAMES, sorted(NAMES)))))


def test_all_layouts_have_the_same_hash(tree, tmp_path):
    for split, numbers in NUMBERS.items():
        write_classes(tmp_path / split, NUMBERED, numbers)
    write_parquet(tmp_path / "hub", NUMBERED, NUMBERED)
    hashes = {
        preload_images(cub200.load(str(root))).content_hash
        for root in (tree, tmp_path, tmp_path / "hub")
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("num_tasks", [10, 20])
def test_tasks(tree, num_tasks):
    stream = build_stream(cub200.load(str(tree)), image_size=8, seed=0, num_tasks=num_tasks)
    order = list(range(200))
    random.seed(0)
    random.shuffle(order)
    assert list(stream.class_order) == order and order[:5] == [131, 181, 22, 172, 144]
    assert stream.class_names[:2] == ("White_crowned_Sparrow", "Yellow_Warbler")
    assert [len(task.classes) for task in stream.tasks] == [200 // num_tasks] * num_tasks
    assert {(len(task.train), len(task.test)) for task in stream.tasks} == {
        (400 // num_tasks, 200 // num_tasks)
    }


def test_other_numbers_of_images_are_warned_of(tree, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        cub200.load(str(tree))
    assert "has 400 train images instead of the published 5,994" in caplog.text
    assert "has 200 test images instead of the published 5,794" in caplog.text
    caplog.clear()
    smaller = dataclasses.replace(cub200.DATASET, published={"train": 400, "test": 200})
    monkeypatch.setattr(cub200, "DATASET", smaller)
    with caplog.at_level(logging.WARNING):
        cub200.load(str(tree))
    assert not caplog.text


def test_the_real_data(data_root):
    if not (data_root / "CUB_200_2011").is_dir():
        pytest.skip("no CUB_200_2011 in SMOPE_DATA")
    source = cub200.load(str(data_root))
    assert (len(source.train), len(source.test)) == (5994, 5794)


def refused(place: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cub200.load(str(place))
    text = str(caught.value)
    assert (
        text.startswith(f"stream.root={place} ")
        and "\n" not in text
        and "stream.download=true fetches https" in text
    )


def test_missing_roots(tmp_path):
    refused(
        tmp_path / "nowhere",
        r"does not exist .* fetches https://data\.caltech\.edu/.*CUB_200_2011\.tgz \(1,151 MB\)",
    )
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"is empty; give a directory that holds the archive as it unpacks")
    (tmp_path / "CUB_200_2011.tgz").write_bytes(b"")
    refused(
        tmp_path / "CUB_200_2011.tgz",
        r"is a file, not a directory; give the directory it unpacks to",
    )


def test_an_archive_left_packed(tmp_path):
    (tmp_path / "CUB_200_2011.tgz").write_bytes(b"")
    refused(
        tmp_path,
        rf"is no complete CUB-200-2011: it holds CUB_200_2011\.tgz; unpack CUB_200_2011\.tgz; "
        rf"{RULE}",
    )


def test_wrong_levels_name_the_right_one(tree, tmp_path):
    right = rf"; stream\.root={tree} or {tree.parent} looks right"
    refused(tree / "images", r"it holds 001\.Black_footed_Albatross, .* and 195 more" + right)
    refused(tree / "images" / NUMBERED[0], right)
    for split, numbers in NUMBERS.items():
        write_classes(tmp_path / "a" / "birds" / split, NUMBERED, numbers)
        write_classes(tmp_path / "a" / "cats" / split, ["cat"], numbers)
    refused(tmp_path / "a", rf"it holds birds, cats; stream\.root={tmp_path}/a/birds looks right")
    refused(tmp_path / "a" / "birds" / "train", rf"stream\.root={tmp_path}/a/birds looks right")


@pytest.mark.parametrize("name", LISTS)
def test_a_missing_list(place, name):
    (place / name).unlink()
    refused(place, rf"is no complete CUB-200-2011: {place}/{name} is missing; accepted")
    refused(place.parent, rf"{place}/{name} is missing")


def test_images_without_lists(place):
    """An archive that was unpacked in part: the lists come after the images."""
    for name in (*LISTS, "classes.txt"):
        (place / name).unlink()
    refused(place.parent, rf"{place}/images\.txt is missing")


def test_half_unpacked_images(place):
    shutil.rmtree(place / "images" / NUMBERED[3])
    first = place / "images" / NUMBERED[3] / "Groove_billed_Ani_0001_10.jpg"
    refused(
        place,
        rf"3 of the 600 images that images\.txt names are missing, the first is {first}; unpack "
        rf"CUB_200_2011\.tgz a",
    )
    shutil.rmtree(place / "images")
    refused(place, r"600 of the 600 images that images\.txt names are missing")


def spoil(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("images.txt", "5", r"line 5 of {path} has '5' alone instead of a key and a value"),
        ("images.txt", "4 x.jpg", r"lines 4 and 5 of {path} are both of 4"),
        (
            "images.txt",
            "901 x.jpg",
            r"{path} has no line for 1 of 601 images that other lists have, the first is number 5",
        ),
        (
            "image_class_labels.txt",
            "5 0",
            r"line 5 of {path} has '0' where one of 1, 2, 3, 4, 5 and 195 more is expected",
        ),
        ("image_class_labels.txt", "5 201", r"line 5 of {path} has '201' where one of 1, 2"),
        (
            "image_class_labels.txt",
            "5 Bobolink",
            r"line 5 of {path} has 'Bobolink' where one of 1, 2",
        ),
        (
            "train_test_split.txt",
            "5 train",
            r"line 5 of {path} has 'train' where one of 0, 1 is expected",
        ),
        (
            "train_test_split.txt",
            "",
            r"{path} has no line for 1 of 600 images that other lists have, the first is number 5",
        ),
    ],
)
def test_lines_that_cannot_be_read(place, name, line, message):
    spoil(place / name, 5, line)
    refused(place, message.format(path=place / name))


def test_lists_that_are_no_text(place):
    path = place / "train_test_split.txt"
    path.write_text(path.read_text(), encoding="utf-16")
    refused(
        place, rf"cannot read {path} as UTF-8 text \(.*codec can't decode byte 0xff in position 0"
    )


def test_lists_of_other_classes(place):
    path = place / "image_class_labels.txt"
    path.write_text(path.read_text().replace(" 200\n", " 199\n"))
    refused(
        place,
        r"it has train images of 199 classes instead of 200, none of Common_Yellowthroat \(if it "
        r"was unpacked only in "
        r"part, unpack it again; stream=folder takes any classes\); accepted",
    )


def test_other_class_folders(tmp_path):
    for split, numbers in NUMBERS.items():
        write_classes(tmp_path / split, NUMBERED, numbers)
    shutil.rmtree(tmp_path / "test" / NUMBERED[7])
    refused(
        tmp_path, r"it has test images of 199 classes instead of 200, none of Rhinoceros_Auklet \("
    )
    (tmp_path / "train" / NUMBERED[7]).rename(tmp_path / "train" / "8")
    refused(
        tmp_path,
        r"train has images in folders that are none of the data set's classes: 8 \(stream=folder "
        r"takes any",
    )


def test_partial_parquet(tmp_path):
    place = write_parquet(tmp_path / "data", NUMBERED, None)
    refused(
        tmp_path,
        r"train-.*parquet has the label 0, which the Hub's metadata in it does not name; each "
        r"must be",
    )
    shutil.rmtree(place)
    write_parquet(place, NUMBERED, ["a name without images", *NUMBERED])
    check_whole(cub200.load(str(tmp_path)))
    shutil.rmtree(place)
    write_parquet(place, [*NUMBERED[:-1], "cat"], [*NUMBERED[:-1], "cat"])
    refused(
        tmp_path,
        r"train-.*parquet has the label 199, which the Hub's metadata in it calls 'cat'; each "
        r"must be named",
    )
    next(place.glob("test-*")).unlink()
    refused(tmp_path, r"data has train-.*\.parquet but no parquet file of test images")


def packed(tree: Path, root: Path) -> Archive:
    """The archive that the tree is from, lying in `root`."""
    root.mkdir()
    path = root / "CUB_200_2011.tgz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree, "CUB_200_2011")
        archive.add(tree.parent / "attributes.txt", "attributes.txt")
    content = path.read_bytes()
    return Archive(
        cub200.DATASET.archive.url,
        path.name,
        hashlib.md5(content, usedforsecurity=False).hexdigest(),
        len(content),
    )


def test_download(tree, tmp_path, monkeypatch):
    root = tmp_path / "data"
    archive = packed(tree, root)
    with pytest.raises(
        UserError, match=r"stream\.download=true: .*tgz has [\d,]+ bytes instead of 1,150,585,339"
    ):
        cub200.load(str(root), download=True)
    assert not (root / "CUB_200_2011").exists()
    monkeypatch.setattr(cub200, "DATASET", dataclasses.replace(cub200.DATASET, archive=archive))
    check_whole(cub200.load(str(root), download=True))
    assert (root / "attributes.txt").is_file()


def test_nothing_is_fetched_where_data_are(tree, place):
    check_whole(cub200.load(str(tree), download=True))
    (place / "images.txt").unlink()
    with pytest.raises(UserError, match=r"images\.txt is missing"):
        cub200.load(str(place), download=True)
