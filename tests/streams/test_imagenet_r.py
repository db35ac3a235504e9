"""ImageNet-R's split lists: read, matched with the images, and refused when they do not fit."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from smope.errors import UserError
from smope.streams import imagenet_r
from smope.streams.layouts import split_lists
from smope.streams.source import Source
from smope.streams.stream import build_stream
from tests.streams.imagenet_trees import (
    STYLES,
    wnids,
    write_archive,
    write_classes,
    write_hub_texts,
)

WNIDS = wnids(imagenet_r.VARIANT)
# the lists' own numbering, as the published one in no order
IDS = random.Random(3).sample(range(200), 200)
# one image a class, not the same in all
TEST = {wnid: STYLES[i % 5] for i, wnid in enumerate(WNIDS)}
Entries = dict[str, list[tuple[str, int]]]


def entries() -> Entries:
    found: Entries = {"train": [], "test": []}
    for wnid, class_id in zip(WNIDS, IDS, strict=True):
        for style in STYLES:
            found["test" if style == TEST[wnid] else "train"].append((f"{wnid}/{style}", class_id))
    for pairs in found.values():
        random.Random(0).shuffle(pairs)
    return found


def write_lists(
    place: Path,
    lists: Entries | None = None,
    prefix: str = "data/imagenet-r/",
    encoding: str = "ascii",
    end: str = "\n",
) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for split, pairs in (lists or entries()).items():
        paths = [
            prefix + (path.replace("/", "\\") if "\\" in prefix else path) for path, _ in pairs
        ]
        text = yaml.dump(
            {"data": paths, "targets": [target for _, target in pairs]}, Dumper=yaml.CSafeDumper
        )
        (place / f"imagenet-r_{split}.yaml").write_text(text, encoding=encoding, newline=end)
    return place


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The folder with what the archive unpacks to; not to be changed."""
    root = tmp_path_factory.mktemp("tree")
    write_archive(root, imagenet_r.VARIANT)
    return root


def check(source: Source, split: str = "other lists") -> None:
    assert (len(source.train), len(source.test)) == (800, 200)
    for images, tests in ((source.train, False), (source.test, True)):
        for target, image in zip(images.targets, images.images, strict=True):
            wnid, name = Path(image).parts[-2:]
            assert target == IDS[WNIDS.index(wnid)] and (name == TEST[wnid]) is tests
    assert source.facts["split"] == split and source.facts.keys() == {"split", "split_hash"}


def refused(tree: Path, lists: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        imagenet_r.load(str(tree), split_lists=str(lists))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith((f"stream.split_lists={lists}: ", f"stream.root={tree}: "))


@pytest.mark.parametrize(
    "prefix", ["data/imagenet-r/", "", "/home/me/ImageNet-R//", "D:\\data\\imagenet-r\\", "./"]
)
def test_prefixes_of_listed_paths_do_not_matter(tree, tmp_path, prefix):
    check(imagenet_r.load(str(tree), split_lists=str(write_lists(tmp_path, prefix=prefix))))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_marks_of_editors_do_not_matter(tree, tmp_path, encoding, end):
    check(
        imagenet_r.load(
            str(tree), split_lists=str(write_lists(tmp_path, encoding=encoding, end=end))
        )
    )


def test_a_file_written_by_hand(tree, tmp_path):
    write_lists(tmp_path)
    for path in tmp_path.iterdir():
        table = yaml.safe_load(path.read_text())
        lines = ["# quoted, indented", "targets: " + str(table["targets"]), "data:"]
        path.write_text("\n".join([*lines, *(f"  - '{name}'" for name in table["data"])]))
    check(imagenet_r.load(str(tree), split_lists=str(tmp_path)))


def test_lists_in_the_root_or_among_the_class_folders_are_used(tree, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(tree, root)
    assert imagenet_r.load(str(root)).facts["split"] == "drawn"
    write_lists(root / "imagenet-r")
    check(imagenet_r.load(str(root)))
    check(imagenet_r.load(str(root / "imagenet-r")))
    for path in (root / "imagenet-r").glob("*.yaml"):
        path.rename(root / path.name)
    check(imagenet_r.load(str(root)))
    assert imagenet_r.load(str(root / "imagenet-r")).facts["split"] == "drawn"
    (root / "imagenet-r_test.yaml").unlink()
    text = (
        rf"stream\.split_lists={root}: no imagenet-r_test\.yaml is there; it must be a "
        r"folder with .* \(null draws"
    )
    with pytest.raises(UserError, match=text):
        imagenet_r.load(str(root))


def test_lists_decide_over_folders_train_and_test(tmp_path):
    write_classes(tmp_path / "train", WNIDS, [0, 1])
    write_classes(tmp_path / "test", WNIDS, [2, 3, 4])
    assert imagenet_r.load(str(tmp_path)).facts["split"] == "as on disk"
    check(imagenet_r.load(str(write_lists(tmp_path))))


def test_lists_find_images_in_parquet(tree, tmp_path):
    lists = str(write_lists(tmp_path / "lists"))
    write_hub_texts(tmp_path, WNIDS)
    table, files = (
        imagenet_r.load(str(tmp_path), split_lists=lists),
        imagenet_r.load(str(tree), split_lists=lists),
    )
    assert table.facts == files.facts and table.test.targets == files.test.targets
    assert list(table.test.images) == [image.read_bytes() for image in files.test.images]


def test_class_ids_are_the_lists_targets(tree, tmp_path):
    source = imagenet_r.load(str(tree), split_lists=str(write_lists(tmp_path)))
    readable = imagenet_r.load(str(tree)).class_names  # by sorted wnids
    assert source.class_names == tuple(readable[IDS.index(class_id)] for class_id in range(200))
    options = {"image_size": 8, "seed": 0, "num_tasks": 10}
    stream = build_stream(source, **options)
    shuffled = list(range(200))
    random.Random(0).shuffle(shuffled)
    assert stream.class_order == tuple(shuffled)
    assert stream.class_names[:20] == tuple(
        source.class_names[class_id] for class_id in shuffled[:20]
    )
    assert [(len(task.train), len(task.test)) for task in stream.tasks] == [(80, 20)] * 10
    assert stream.facts["split"] == "other lists"
    assert build_stream(imagenet_r.load(str(tree)), **options).class_names != stream.class_names


def test_the_published_lists_are_known_by_their_hash(tree, tmp_path, monkeypatch):
    lists = str(write_lists(tmp_path))
    monkeypatch.setattr(imagenet_r, "PUBLISHED_HASH", split_lists.read_lists(tmp_path).content_hash)
    check(imagenet_r.load(str(tree), split_lists=lists), "published lists")
    check(
        imagenet_r.load(str(tree), split_lists=str(write_lists(tmp_path, prefix="D:\\r\\"))),
        "published lists",
    )
    write_lists(tmp_path, renumbered(range(199, -1, -1)))
    assert imagenet_r.load(str(tree), split_lists=lists).facts["split"] == "other lists"
    changed = entries()
    changed["train"].append(
        changed["test"].pop(next(i for i, (_, target) in enumerate(changed["test"]) if target))
    )
    assert (
        imagenet_r.load(str(tree), split_lists=str(write_lists(tmp_path, changed))).facts["split"]
        == "other lists"
    )


def test_lists_of_the_published_size(tmp_path):
    pairs = [(f"{WNIDS[i % 200]}/art_{i}.jpg", IDS[i % 200]) for i in range(30_000)]
    lists = split_lists.read_lists(
        write_lists(tmp_path, {"train": pairs[6_000:], "test": pairs[:6_000]})
    )
    assert [list(lists.splits.values()).count(split) for split in ("train", "test")] == [
        24_000,
        6_000,
    ]
    assert [lists.wnids[class_id] for class_id in IDS] == WNIDS


def test_listed_images_that_are_not_there(tree, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(tree, root)
    for style in (STYLES[2], STYLES[0]):
        (root / "imagenet-r" / WNIDS[7] / style).unlink()
    text = (
        rf"2 of the 1,000 images listed in {tmp_path} are not in {root / 'imagenet-r'}, "
        r"the first is"
    )
    refused(
        root,
        write_lists(tmp_path),
        rf"{text} {WNIDS[7]}/art_0\.jpg; unpack imagenet-r\.tar again, or give lists",
    )


def test_images_that_are_not_listed_are_left_out_with_a_warning(tree, tmp_path, caplog):
    lists = entries()
    left = [lists["train"].pop() for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        source = imagenet_r.load(str(tree), split_lists=str(write_lists(tmp_path, lists)))
    assert (
        f"stream.split_lists={tmp_path}: 3 images are in neither list and left out" in caplog.text
    )
    assert len(source.train) == 797 and not {path for path, _ in left} & {
        "/".join(Path(image).parts[-2:]) for image in source.train.images
    }


def changed(split: str, index: int, path: str | None = None, target: object = None) -> Entries:
    """The lists with another path or target in one place."""
    lists = entries()
    old = lists[split][index]
    lists[split][index] = (path or old[0], old[1] if target is None else target)  # type: ignore[assignment]
    return lists


TRAIN, OTHER = entries()["train"][0], entries()["train"][1]
IN_TEST = entries()["test"][0]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (
            changed("train", 0, *IN_TEST),
            rf"{IN_TEST[0]} is in both lists; each image may be listed once",
        ),
        (changed("train", 0, *OTHER), rf"{OTHER[0]} is in imagenet-r_train\.yaml twice; each"),
        (
            changed("train", 0, target=500),
            rf"{TRAIN[0][:9]} has targets (500 and {TRAIN[1]}|{TRAIN[1]} and 500); each",
        ),
        (
            changed("train", 0, target="7"),
            rf"train\.yaml gives {TRAIN[0]} the target '7', which is no whole number",
        ),
        (
            changed("test", 0, target=1.5),
            rf"test\.yaml gives {IN_TEST[0]} the target 1\.5, which is no whole number",
        ),
    ],
)
def test_lists_that_contradict_themselves(tree, tmp_path, lists, message):
    refused(tree, write_lists(tmp_path, lists), message)


def renumbered(numbers: Sequence[int]) -> Entries:
    return {
        split: [(path, numbers[target]) for path, target in pairs]
        for split, pairs in entries().items()
    }


def test_targets_must_number_the_classes(tree, tmp_path):
    text = r"the targets of 200 classes must be the numbers 0 to 199, one each"
    refused(tree, write_lists(tmp_path, renumbered(range(1, 201))), text)
    refused(tree, write_lists(tmp_path, renumbered([0, *range(199)])), text)
    lists = {
        split: [(path, target) for path, target in pairs if target < 150]
        for split, pairs in entries().items()
    }
    refused(
        tree,
        write_lists(tmp_path, lists),
        r"150 of the 200 classes are listed; give lists of all classes",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: [a/b.jpg\ntargets: [0]", r"cannot read imagenet-r_test\.yaml \(.*line 2"),
        ("", r"imagenet-r_test\.yaml has no lists data and targets of the same length"),
        ("- a\n- b\n", r"has no lists data and targets of the same length"),
        ("data: [a/b.jpg]\ntargets: [0, 1]", r"has no lists data and targets of the same length"),
        ("data: [b.jpg]\ntargets: [0]", r"lists 'b\.jpg', which does not end in <wnid>/<file>"),
        ("data: [3]\ntargets: [0]", r"lists 3, which does not end in <wnid>/<file>"),
        ("data: [a/]\ntargets: [0]", r"lists 'a/', which does not end in <wnid>/<file>"),
        (
            "data: !!python/object/apply:os.getcwd []",
            r"cannot read imagenet-r_test\.yaml \(.*python/object/apply",
        ),
    ],
)
def test_files_that_are_no_lists(tree, tmp_path, text, message):
    write_lists(tmp_path)
    (tmp_path / "imagenet-r_test.yaml").write_text(text)
    refused(tree, tmp_path, message)


def test_wrong_places_of_lists(tree, tmp_path):
    must = (
        r"it must be a folder with the published imagenet-r_train\.yaml and imagenet-r_test\.yaml"
    )
    refused(tree, tmp_path / "nowhere", rf"no imagenet-r_train\.yaml is there; {must}")
    place = write_lists(tmp_path)
    refused(tree, place / "imagenet-r_train.yaml", rf"it is a file; {must}")
    (place / "imagenet-r_test.yaml").unlink()
    refused(tree, place, rf"no imagenet-r_test\.yaml is there; {must}")
