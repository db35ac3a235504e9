from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
import shutil
import zipfile
from pathlib import Path

import pytest

from smope.errors import UserError
from smope.streams import tiny_imagenet
from smope.streams.archives.download import Archive
from smope.streams.pixels.preload import preload_images
from smope.streams.stream import build_stream
from tests.streams.class_trees import NUMBERS, check_whole, write, write_classes, write_parquet

WNIDS = tiny_imagenet.WNIDS
# what the Hub's copy zh-plus/tiny-imagenet calls classes whose wnids it has not
HUB_WORDS = {
    "n02666347": "abacus",
    "n03373237": "fly",
    "n04465666": "tractor",
    "n04598010": "wooden spoon",
    "n07056680": "reel",
    "n07646821": "goose",
    "n07647870": "drumstick",
    "n07657664": "plate",
    "n07975909": "bee",
    "n08496334": "apron",
    "n08620881": "pole",
    "n08742578": "Chihuahua",
    "n12520864": "broom",
    "n13001041": "mushroom",
    "n13652335": "nail",
    "n13652994": "chain",
    "n13719102": "slug",
    "n14991210": "orange",
}
HUB_BY_WORD = {word: wnid for wnid, word in HUB_WORDS.items()}
HUB_IDS = tuple(
    HUB_BY_WORD.get(name, wnid) for wnid, name in zip(WNIDS, tiny_imagenet.CLASS_NAMES, strict=True)
)
RULE = (
    r"accepted are the archive as it unpacks \(tiny-imagenet-200/ or the folder above "
    r"it\), class folders train/<wnid>/"
)


def write_archive(root: Path, ends: str = "\n", mark: str = "") -> Path:
    """What the archive unpacks to; its test images have no labels, and its lists are in an order
    of no meaning.
    """
    place = root / "tiny-imagenet-200"
    write_classes(place / "train", WNIDS, NUMBERS["train"], inner="images")
    for wnid in WNIDS:
        (place / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    shuffled = random.Random(1).sample(range(200), 200)
    lines = []
    for row, class_id in enumerate(shuffled):
        write(place / "val" / "images" / f"val_{row}.JPEG", class_id, 2)
        lines.append(f"val_{row}.JPEG\t{WNIDS[class_id]}\t0\t32\t44\t62")
    text = mark + ends.join([*lines, ""]) + ends * 2
    (place / "val" / "val_annotations.txt").write_text(text, encoding="utf-8", newline="")
    write(place / "test" / "images" / "test_0.JPEG", 0, 0)
    (place / "wnids.txt").write_text("\n".join(WNIDS[class_id] for class_id in shuffled))
    (place / "words.txt").write_text("n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\n")
    return place


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """What the archive unpacks to; not to be changed."""
    return write_archive(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def place(tree, tmp_path) -> Path:
    """A copy of the tree that a test may change."""
    return Path(shutil.copytree(tree, tmp_path / "tiny-imagenet-200"))


def test_the_archives_layout(tree, place):
    source = tiny_imagenet.load(str(tree))
    check_whole(source)
    assert source.name == "tiny_imagenet" and source.facts == {"test_images": "val"}
    check_whole(tiny_imagenet.load(str(tree.parent)))
    for name in ("wnids.txt", "words.txt"):  # nothing in them that is needed
        (place / name).unlink()
    check_whole(tiny_imagenet.load(str(place.rename(place.with_name("tiny")))))


def test_classes():
    names = tiny_imagenet.CLASS_NAMES
    assert len(set(names)) == len(set(WNIDS)) == len(set(HUB_IDS)) == 200 and sorted(WNIDS) == list(
        WNIDS
    )
    assert len(set(HUB_IDS) - set(WNIDS)) == 18
    assert (WNIDS[0], names[0], WNIDS[199], names[199]) == (
        "n01443537",
        "goldfish",
        "n12267677",
        "acorn",
    )
    assert all(name == name.strip() and "\n" not in name for name in names)


@pytest.mark.parametrize(("ends", "mark"), [("\r\n", ""), ("\r\n", "\ufeff"), ("\n", "\ufeff")])
def test_lists_from_other_systems(tmp_path, ends, mark):
    check_whole(tiny_imagenet.load(str(write_archive(tmp_path, ends, mark))))


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
@pytest.mark.parametrize("inner", ["", "images"])
def test_class_folders(tmp_path, name, inner):
    write_classes(tmp_path / "train", WNIDS, NUMBERS["train"], inner)
    write_classes(tmp_path / name, WNIDS, NUMBERS["test"], inner)
    source = tiny_imagenet.load(str(tmp_path))
    check_whole(source)
    assert source.facts == {"test_images": name}


def test_validation_images_sorted_into_class_folders(place):
    """What scripts make of the archive: val/<wnid>/ beside what is left of val/images and its
    list.
    """
    shutil.rmtree(place / "val" / "images")
    (place / "val" / "images").mkdir()
    write_classes(place / "val", WNIDS, NUMBERS["test"], "images")
    check_whole(tiny_imagenet.load(str(place)))


def test_test_folders_come_first(tmp_path):
    for name in ("train", "val"):
        write_classes(tmp_path / name, WNIDS, NUMBERS["train"])
    write_classes(tmp_path / "test", WNIDS, NUMBERS["test"])
    source = tiny_imagenet.load(str(tmp_path))
    check_whole(source)
    assert source.facts == {"test_images": "test"}


@pytest.mark.parametrize("called", ["valid", "validation", "test"])
@pytest.mark.parametrize("names", [WNIDS, HUB_IDS])
def test_parquet(tmp_path, called, names):
    write_parquet(tmp_path / "data", names, sorted(names), {"train": "train", "test": called})
    source = tiny_imagenet.load(str(tmp_path))
    check_whole(source)
    assert source.facts == {"test_images": called}
    check_whole(tiny_imagenet.load(str(tmp_path / "data")))


def test_all_layouts_have_the_same_hash(tree, tmp_path):
    for name, numbers in (("train", NUMBERS["train"]), ("val", NUMBERS["test"])):
        write_classes(tmp_path / "folders" / name, WNIDS, numbers)
    write_parquet(tmp_path / "hub", HUB_IDS, sorted(HUB_IDS), {"train": "train", "test": "valid"})
    roots = (tree, tmp_path / "folders", tmp_path / "hub")
    assert len({preload_images(tiny_imagenet.load(str(root))).content_hash for root in roots}) == 1


def test_tasks(tree):
    stream = build_stream(tiny_imagenet.load(str(tree)), image_size=8, seed=0, num_tasks=10)
    assert stream.class_order[:5] == (131, 181, 22, 172, 144)
    assert [WNIDS[class_id] for class_id in stream.class_order[:2]] == ["n03970156", "n07695742"]
    assert [(len(task.classes), len(task.train), len(task.test)) for task in stream.tasks] == [
        (20, 40, 20)
    ] * 10
    assert stream.facts == {"test_images": "val"}


def test_other_numbers_of_images_are_warned_of(tree, caplog):
    with caplog.at_level(logging.WARNING):
        tiny_imagenet.load(str(tree))
    assert "has 400 train images instead of the published 100,000" in caplog.text
    assert "has 200 test images instead of the published 10,000" in caplog.text


def test_the_real_data(data_root):
    if not (data_root / "tiny-imagenet-200").is_dir():
        pytest.skip("no tiny-imagenet-200 in SMOPE_DATA")
    source = tiny_imagenet.load(str(data_root))
    assert (len(source.train), len(source.test)) == (100_000, 10_000)


def refused(place: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny_imagenet.load(str(place))
    text = str(caught.value)
    assert (
        text.startswith(f"stream.root={place} ")
        and "\n" not in text
        and "stream.download=true fetches https" in text
    )


def test_missing_roots(tmp_path):
    refused(
        tmp_path / "nowhere",
        r"does not exist .* fetches "
        r"https://cs231n\.stanford\.edu/tiny-imagenet-200\.zip \(248 MB\)",
    )
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"is empty; give a directory that holds the archive as it unpacks")
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"")
    refused(
        tmp_path / "tiny-imagenet-200.zip",
        r"is a file, not a directory; give the directory it unpacks to",
    )


def test_an_archive_left_packed(tmp_path):
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(b"")
    refused(
        tmp_path,
        rf"is no complete Tiny-ImageNet: it holds tiny-imagenet-200\.zip; unpack "
        rf"tiny-imagenet-200\.zip; {RULE}",
    )


def test_wrong_levels_name_the_right_one(tree, tmp_path):
    right = rf"; stream\.root={tree} or {tree.parent} looks right"
    for name in ("train", "val", f"train/{WNIDS[0]}", "val/images"):
        refused(tree / name, right)
    shutil.copytree(tree / "val", tmp_path / "a" / "tiny" / "val")
    refused(tmp_path / "a", rf"it holds tiny; stream\.root={tmp_path}/a/tiny looks right")


def test_half_unpacked(place):
    shutil.rmtree(place / "train" / WNIDS[199])
    refused(
        place,
        r"is no complete Tiny-ImageNet: it has train images of 199 classes instead of 200, none "
        r"of acorn \(if it was "
        r"unpacked only in part, unpack it again; stream=folder takes any classes\); accepted",
    )
    shutil.rmtree(place / "train")
    refused(place.parent, rf"{place}/train is missing; accepted")


def test_half_of_the_validation_images(place):
    for row in range(3, 200):
        (place / "val" / "images" / f"val_{row}.JPEG").unlink()
    first = place / "val" / "images" / "val_3.JPEG"
    refused(
        place,
        rf"197 of the 200 images that val_annotations\.txt names are missing, the first is "
        rf"{first}; unpack tiny",
    )


def test_missing_annotations(place):
    path = place / "val" / "val_annotations.txt"
    path.unlink()
    refused(place, rf"{path} is missing; accepted")
    shutil.rmtree(place / "val")
    refused(place, rf"{path} is missing; accepted")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_4.JPEG", r"line 5 of {path} has 'val_4\.JPEG' alone instead of a key and a value"),
        ("val_3.JPEG\tn01443537\t0", r"lines 4 and 5 of {path} are both of val_3\.JPEG"),
        (
            "val_4.JPEG\tn99999999\t0",
            r"line 5 of {path} has 'n99999999', which is none of the 200 classes",
        ),
        (
            "val_900.JPEG\tn01443537\t0",
            r"1 of the 200 images that .* missing, the first is .*/val_900\.JPEG",
        ),
    ],
)
def test_lines_that_cannot_be_read(place, line, message):
    path = place / "val" / "val_annotations.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], line, *lines[5:]]))
    refused(place, message.format(path=path))


def test_other_class_folders(place):
    (place / "train" / WNIDS[7]).rename(place / "train" / "n99999999")
    refused(
        place,
        r"train has images in folders that are none of the data set's classes: n99999999 "
        r"\(stream=folder takes",
    )


def test_partial_parquet(tmp_path):
    place = write_parquet(tmp_path / "data", WNIDS, None)
    refused(
        tmp_path,
        r"train-.*parquet has the label 0, which the Hub's metadata in it does not name; each "
        r"must be",
    )
    next(place.glob("train-*")).unlink()
    refused(tmp_path, r"data has test-.*\.parquet but no parquet file of train images")


def packed(tree: Path, root: Path) -> Archive:
    """The archive that the tree is from, lying in `root`."""
    root.mkdir()
    path = root / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tree.rglob("*")):
            archive.write(file, file.relative_to(tree.parent))
    content = path.read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return Archive(tiny_imagenet.DATASET.archive.url, path.name, md5, len(content))


def test_download(tree, tmp_path, monkeypatch):
    root = tmp_path / "data"
    archive = packed(tree, root)
    official = tiny_imagenet.DATASET
    other = dataclasses.replace(archive, md5="0" * 32)
    monkeypatch.setattr(tiny_imagenet, "DATASET", dataclasses.replace(official, archive=other))
    with pytest.raises(
        UserError, match=rf"stream\.download=true: .*zip has md5 {archive.md5} instead of 0{{32}}"
    ):
        tiny_imagenet.load(str(root), download=True)
    assert not (root / "tiny-imagenet-200").exists()
    monkeypatch.setattr(tiny_imagenet, "DATASET", dataclasses.replace(official, archive=archive))
    check_whole(tiny_imagenet.load(str(root), download=True))


def test_nothing_is_fetched_where_data_are(tree, place):
    check_whole(tiny_imagenet.load(str(tree), download=True))
    shutil.rmtree(place / "train")
    with pytest.raises(UserError, match=r"train is missing"):
        tiny_imagenet.load(str(place), download=True)
