from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from smope.errors import UserError
from smope.streams import folder, table
from smope.streams.pixels.preload import preload_images
from smope.streams.stream import build_stream


@pytest.fixture
def root(tmp_path, write_image) -> Path:
    """Two classes, three training images and one test image each."""
    place = tmp_path / "photos"
    for label, name in enumerate(("cat", "dog")):
        for i in range(3):
            write_image(place / "train" / name / f"{i}.png", 10 * label + i)
        write_image(place / "test" / name / "9.png", 10 * label + 9)
    return place


def pictures(images) -> list[bytes]:
    return [images.pixels(i).tobytes() for i in range(len(images.targets))]


def test_classes_and_images(root, pixels):
    source = folder.load(str(root))
    assert source.name == "folder" and source.class_names == ("cat", "dog")
    assert list(source.train.targets) == [0, 0, 0, 1, 1, 1] and list(source.test.targets) == [0, 1]
    assert pictures(source.train) == [pixels(seed).tobytes() for seed in (0, 1, 2, 10, 11, 12)]
    assert [source.test.name(i) for i in (0, 1)] == [
        str(root / "test" / name / "9.png") for name in ("cat", "dog")
    ]
    assert source.train.tasks is None and source.task_names is None and not source.facts


def test_nested_files_suffixes_and_skipped_files(root, pixels, write_image):
    cat = root / "train" / "cat"
    write_image(cat / "b" / "deep" / "x.png", 50)
    Image.fromarray(pixels(51)).save(cat / "a.JPG", format="JPEG")
    (cat / "notes.txt").write_text("no image")
    (cat / ".hidden.png").write_text("no image")
    write_image(cat / ".thumbnails" / "x.png", 52)
    (root / "train" / "README.md").write_text("no class")
    (root / "train" / ".cache").mkdir()
    source = folder.load(str(root))
    names = [path.relative_to(cat).as_posix() for path in source.train.images[:5]]
    assert names == ["0.png", "1.png", "2.png", "a.JPG", "b/deep/x.png"]
    assert source.class_names == ("cat", "dog")


def test_finding_reads_no_image(root):
    (root / "train" / "cat" / "1.png").write_text("no image")
    assert len(folder.load(str(root)).train) == 6


def content_hash(root) -> str:
    return preload_images(folder.load(str(root))).content_hash


def test_hash_is_of_contents_and_classes(root, tmp_path):
    digest = content_hash(root)
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(root, moved)
    os.rename(moved / "train" / "cat" / "0.png", moved / "train" / "cat" / "z.png")
    assert content_hash(moved) == digest
    os.rename(moved / "train" / "cat" / "z.png", moved / "train" / "dog" / "z.png")
    assert content_hash(moved) != digest


def test_relative_and_home_roots(root, monkeypatch):
    digest = content_hash(root)
    monkeypatch.chdir(root.parent)
    assert content_hash("photos") == digest
    monkeypatch.setenv("HOME", str(root.parent))
    assert content_hash("~/photos") == digest


def test_other_test_folders_are_left_out(root, caplog, write_image):
    write_image(root / "test" / "fox" / "0.png")
    with caplog.at_level(logging.WARNING):
        source = folder.load(str(root))
    assert len(source.test.targets) == 2 and "left out: fox" in caplog.text


def test_stream_of_a_folder(root):
    stream = build_stream(
        folder.load(str(root)),
        image_size=16,
        seed=0,
        num_tasks=2,
        classes_per_task=None,
        class_order=[1, 0],
        crop_scale=[0.08, 1.0],
        flip=True,
        eval_crop=0.875,
    )
    assert [task.class_names for task in stream.tasks] == [("dog",), ("cat",)]
    assert stream.tasks[0].train[0][0].shape == (3, 16, 16)


def refused(place: Path | str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        folder.load(str(place))
    assert f"stream.root={place}" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_roots_are_refused(root, tmp_path):
    refused(
        tmp_path / "nowhere", r"does not exist \(looked in .*nowhere\); give an existing directory"
    )
    archive = tmp_path / "photos.zip"
    archive.write_bytes(b"PK")
    refused(archive, r"is a file, not a directory; give the directory it unpacks to")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty",
        r"is empty; give a directory that holds train/<class>/ and test/<class>/",
    )


def test_wrong_levels_name_the_right_one(root):
    right = rf"must hold train/<class>/ and test/<class>/ .*stream\.root={root} looks right$"
    refused(root.parent, right)
    shutil.copytree(root, root.parent / "too" / "far" / "photos")
    refused(
        root.parent / "too",
        r"it holds far; give the directory above the train and test folders, or above the class "
        r"folders$",
    )
    refused(root / "train", right)
    refused(root / "train" / "cat", right)
    nested = root / "train" / "cat" / "more"
    shutil.copytree(root / "train" / "dog", nested)
    refused(nested, right)


def test_folders_of_domains_are_pointed_to_their_stream(root):
    place = root.parent / "pacs"
    for name in ("photo", "sketch"):
        shutil.copytree(root, place / name)
    refused(
        place,
        rf"stream\.root={place}/photo or {place}/sketch looks right; stream=domains takes all of "
        rf"them$",
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "val"), r"it holds train, val; rename val to test$"),
        (("Train", "TEST"), r"rename Train to train and TEST to test$"),
        (("TRAIN", "validation"), r"rename TRAIN to train and validation to test$"),
        (
            ("train", "spare"),
            r"no test folder; add one, or have test images drawn: stream\.root=.*photos/train$",
        ),
    ],
)
def test_other_names_of_the_splits(root, names, message):
    for old, new in zip(("train", "test"), names, strict=True):
        os.rename(root / old, root / f"{new}_")
        os.rename(root / f"{new}_", root / new)
    refused(root, message)


def test_wrong_layouts_are_refused(root, tmp_path, write_image):
    shutil.rmtree(root / "test")
    refused(root, r"it holds train but no test folder; add one")
    refused(
        write_image(tmp_path / "flat" / "a.png").parent,
        r"it holds a\.png; give the directory above the train",
    )
    write_image(tmp_path / "single" / "cat" / "a.jpg")
    refused(tmp_path / "single", r"it holds cat, and only one folder has images; make a folder for")
    write_image(tmp_path / "outer" / "photos" / "cat" / "a.jpg")
    write_image(tmp_path / "outer" / "photos" / "dog" / "a.jpg")
    refused(tmp_path / "outer", r"it holds photos; stream\.root=.*/outer/photos looks right$")
    for name in ("train", "val"):
        write_image(tmp_path / "no classes" / name / "a.jpg")
    refused(tmp_path / "no classes", r"it holds train, val; rename val to test$")


def test_a_train_folder_without_classes_is_refused(root, write_image):
    shutil.rmtree(root / "train")
    write_image(root / "train" / "a.png")
    refused(root, r"its train folder has no class folders, add one a class")


def test_a_class_without_test_folder_is_refused(root):
    shutil.rmtree(root / "test" / "dog")
    refused(
        root,
        r"every class needs a test folder, there is none for dog; add .*test/dog with images or "
        r"remove",
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_refused(root, split):
    for path in (root / split / "cat").iterdir():
        path.rename(path.with_suffix(".txt"))
    refused(
        root,
        rf"class folder .*{split}/cat has no image files \(\.bmp, .*\); add images or remove the "
        rf"class",
    )


def test_broken_images_are_named_before_training(root, write_image):
    (root / "train" / "dog" / "1.png").write_text("no image")
    with pytest.raises(
        UserError,
        match=r"stream folder: cannot read image .*train/dog/1\.png: not a known image format; "
        r"replace",
    ):
        preload_images(folder.load(str(root)))
    write_image(root / "train" / "dog" / "1.png")
    cut = write_image(root / "test" / "dog" / "cut.jpg", 0, 64, 64)
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cannot read image .*test/dog/cut\.jpg: .*truncated"):
        preload_images(folder.load(str(root)))
    contents = preload_images(folder.load(str(root)), "skip")
    assert contents.skipped == (str(cut),) and len(contents.source.test) == 2


@pytest.fixture
def class_folders(tmp_path, write_image) -> Path:
    """Class folders alone: 10 images of cat, 4 of dog, some in a folder of their own, 2 of fox."""
    place = tmp_path / "class folders"
    for label, (name, count) in enumerate((("cat", 10), ("dog", 4), ("fox", 2))):
        for i in range(count):
            inner = "older" if name == "dog" and i > 1 else ""
            write_image(place / name / inner / f"{i}.png", 100 * label + i, 8, 8)
    return place


def names_in(source, split: str) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in getattr(source, split).images]


def test_class_folders_alone_are_divided(class_folders):
    source = folder.load(str(class_folders))
    assert source.class_names == ("cat", "dog", "fox")
    assert Counter(source.test.targets) == {0: 2, 1: 1, 2: 1}
    assert Counter(source.train.targets) == {0: 8, 1: 3, 2: 1}
    assert not set(source.train.images) & set(source.test.images)
    assert source.facts.keys() == {"split", "split_seed", "test_fraction", "split_hash"}
    assert (source.facts["split"], source.facts["test_fraction"]) == ("drawn", 0.2)
    other = folder.load(str(class_folders), split_seed=1)
    assert other.facts["split_hash"] != source.facts["split_hash"]
    half = folder.load(str(class_folders), test_fraction=0.5)
    assert Counter(half.test.targets) == {0: 5, 1: 2, 2: 1}
    most = folder.load(str(class_folders), test_fraction=0.99)
    assert Counter(most.train.targets) == {0: 1, 1: 1, 2: 1}, "an image of each class is left"


def test_the_drawn_split_is_of_names_alone(class_folders, tmp_path):
    source = folder.load(str(class_folders))
    copy = folder.load(shutil.copytree(class_folders, tmp_path / "other" / "copy"))
    assert copy.facts == source.facts
    assert [names_in(copy, split) for split in ("train", "test")] == [
        names_in(source, split) for split in ("train", "test")
    ]


def test_a_table_of_the_same_images_has_the_same_split(class_folders):
    files = sorted(class_folders.rglob("*.png"), reverse=True)
    rows = [
        f"{f.relative_to(class_folders)},{f.relative_to(class_folders).parts[0]}" for f in files
    ]
    (class_folders / "images.csv").write_text("\n".join(["path,label", *rows]))
    source, listed = folder.load(str(class_folders)), table.load(str(class_folders / "images.csv"))
    assert listed.facts == source.facts
    assert set(listed.test.images) == set(source.test.images)
    hashes = [preload_images(each).content_hash for each in (source, listed)]
    assert hashes[0] == hashes[1]


def test_the_split_is_part_of_the_streams_identity(class_folders):
    streams = [
        build_stream(
            folder.load(str(class_folders), split_seed=seed),
            image_size=16,
            seed=0,
            num_tasks=3,
        )
        for seed in (0, 0, 1)
    ]
    assert streams[0].identity == streams[1].identity != streams[2].identity
    assert streams[0].facts["split_hash"] == streams[1].facts["split_hash"]


def test_classes_with_one_image_are_named(class_folders, write_image):
    for name in ("ant", "bee"):
        write_image(class_folders / name / "only.png")
    refused(class_folders, r"needs two images or more, .* these have one: ant, bee; add images or")


def test_what_lies_beside_class_folders_is_named(class_folders, write_image, caplog):
    write_image(class_folders / "stray.png")
    (class_folders / "notes").mkdir()
    (class_folders / "README.txt").touch()
    source = folder.load(str(class_folders))
    assert source.class_names == ("cat", "dog", "fox")
    empty, stray = caplog.messages
    assert empty.endswith("folders without image files are left out: notes")
    assert stray.endswith("image files beside the class folders are left out: stray.png")


def test_a_fraction_without_use_is_named(root, caplog):
    source = folder.load(str(root), test_fraction=0.5)
    assert len(source.test) == 2 and not source.facts
    assert f"stream.test_fraction=0.5 is not used: {root} has folders train and test" in caplog.text


def test_a_train_folder_without_its_test_folder_can_be_divided(root):
    shutil.rmtree(root / "test")
    assert Counter(folder.load(str(root / "train")).test.targets) == {0: 1, 1: 1}
