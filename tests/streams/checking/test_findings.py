"""What is said of inspected images, and how bad it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smope.streams.checking.findings import Finding, findings, uneven_tasks
from smope.streams.checking.inspection import InspectedImage, Inspection, TaskContents
from smope.streams.source import ImageSet, Source


def looks(split: str, counts: list[int], start: int = 0) -> list[InspectedImage]:
    """So many different images of each class."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return [
        InspectedImage(split, f"{split}/{i}", label, "", f"{split}{i}", f"{start + i}", (64, 64))
        for i, label in enumerate(labels)
    ]


def inspection(
    train: list[InspectedImage],
    test: list[InspectedImage],
    unused: tuple[str, ...] = (),
    classes: int = 2,
) -> Inspection:
    nothing = ImageSet([], [])
    source = Source("some", tuple("abcdefghij"[:classes]), nothing, nothing)
    return Inspection(source, (*train, *test), "", unused)


def found(
    train: list[InspectedImage], test: list[InspectedImage], **options: object
) -> dict[str, Finding]:
    return {finding.kind: finding for finding in findings(inspection(train, test, **options))}  # type: ignore[arg-type]


def change(look: InspectedImage, **values: object) -> InspectedImage:
    return replace(look, **values)  # type: ignore[arg-type]


TRAIN, TEST = looks("train", [10, 10]), looks("test", [100, 100], start=1000)


def test_nothing_to_say_of_a_good_data_set() -> None:
    assert found(TRAIN, TEST) == {}


def test_broken_images_are_all_named() -> None:
    broken = [change(look, problem="torn") for look in TRAIN[:2]]
    finding = found([*broken, *TRAIN[2:]], TEST)["unreadable"]
    assert finding.level == "error"
    assert finding.text == (
        "2 images cannot be read; replace or remove them, or train with stream.broken_images=skip"
    )
    assert [(item.names, item.detail) for item in finding.items] == [
        (("train/0",), "torn"),
        (("train/1",), "torn"),
    ]
    one = found([broken[0], *TRAIN[1:]], TEST)["unreadable"]
    assert one.text.startswith("1 image cannot be read; replace or remove it, or")


@pytest.mark.parametrize(("shared", "level"), [(1, "warning"), (2, "warning"), (3, "error")])
def test_an_overlap_of_more_than_one_percent_is_an_error(shared: int, level: str) -> None:
    test = [change(look, pixels=f"{i}") if i < shared else look for i, look in enumerate(TEST)]
    finding = found(TRAIN, test)["in_both_splits"]
    assert finding.level == level
    assert [item.names for item in finding.items] == [
        (f"train/{i}", f"test/{i}") for i in range(shared)
    ]
    are = "is" if shared == 1 else "are"
    percent = {1: "0.5", 2: "1", 3: "1.5"}[shared]
    assert finding.text == (
        f"{shared} of 200 test images ({percent} %) {are} among the training images, pixel for "
        f"pixel"
    )


def test_many_copies_are_one_item() -> None:
    """A placeholder picture that is everywhere does not make a line for each pair."""
    train, test = ([change(look, pixels="same") for look in images] for images in (TRAIN, TEST))
    by_kind = found(train, test)
    (item,) = by_kind["in_both_splits"].items
    assert len(item.names) == 220
    assert by_kind["in_both_splits"].text.startswith("200 of 200 test images (100 %) are among")
    assert by_kind["several_classes"].items[0].detail == "classes a, b"


def test_broken_images_equal_nothing() -> None:
    broken = [change(look, problem="torn", pixels="") for look in (*TRAIN[:2], *TEST[:2])]
    assert {"in_both_splits", "repeated_in_train"}.isdisjoint(
        found(broken[:2] + TRAIN[2:], broken[2:] + TEST[2:])
    )


def test_the_same_picture_in_two_classes() -> None:
    train = [change(TRAIN[0], pixels="same"), *TRAIN[1:-1], change(TRAIN[-1], pixels="same")]
    by_kind = found(train, TEST)
    assert by_kind["several_classes"].level == "warning"
    assert by_kind["several_classes"].text == "1 picture is in more than one class"
    assert by_kind["several_classes"].items[0].names == ("train/0", "train/19")
    assert by_kind["repeated_in_train"].level == "note"
    assert by_kind["repeated_in_train"].text == "1 training image repeats another training image"
    assert "in_both_splits" not in by_kind


def test_missing_and_small_classes() -> None:
    by_kind = found(looks("train", [4, 100, 5]), looks("test", [2, 1, 0], start=1000), classes=3)
    assert by_kind["missing_class"].level == "error"
    assert by_kind["missing_class"].text == "1 class has no readable test images"
    assert [item.names for item in by_kind["missing_class"].items] == [("c",)]
    small = [
        finding
        for finding in findings(
            inspection(looks("train", [4, 100, 5]), looks("test", [2, 1, 0], 1000), classes=3)
        )
        if finding.kind == "small_class"
    ]
    assert [
        (finding.text, finding.items[0].names, finding.items[0].detail) for finding in small
    ] == [
        ("1 class has fewer than 5 training images", ("a",), "4 images"),
        ("1 class has fewer than 2 test images", ("b",), "1 image"),
    ]
    assert all(finding.level == "warning" for finding in small)


def test_a_class_with_less_than_a_tenth_of_the_others_is_small() -> None:
    finding = found(
        looks("train", [9, 10, 100, 100, 100]), looks("test", [5] * 5, 1000), classes=5
    )["small_class"]
    assert finding.text == "1 class has fewer than 10 training images"
    assert finding.items[0].names == ("a",)


def test_unusual_modes_and_how_they_are_handled() -> None:
    train = [
        change(TRAIN[0], traits=("CMYK", "EXIF-rotated")),
        change(TRAIN[1], traits=("CMYK",)),
        *TRAIN[2:],
    ]
    by_kind = found(train, TEST)
    assert {kind: len(finding.items) for kind, finding in by_kind.items()} == {
        "cmyk": 2,
        "exif_rotated": 1,
    }
    assert {finding.level for finding in by_kind.values()} == {"warning"}
    assert by_kind["cmyk"].text == (
        "2 CMYK images: converted to RGB without a colour profile, in training and prediction alike"
    )


def test_sizes_are_notes() -> None:
    train = [change(TRAIN[0], size=(31, 90)), change(TRAIN[1], size=(400, 99)), *TRAIN[2:]]
    by_kind = found([*train, change(TRAIN[2], size=(400, 100), pixels="x")], TEST)
    assert {kind: finding.level for kind, finding in by_kind.items()} == {
        "small_image": "note",
        "long_image": "note",
    }
    assert [item.detail for finding in by_kind.values() for item in finding.items] == [
        "31x90",
        "400x99",
    ]


def test_unused_files_are_notes() -> None:
    finding = found(TRAIN, TEST, unused=("a.heic", "b.txt"))["unused_file"]
    assert (finding.level, finding.text) == (
        "note",
        "2 files lie beside the images and will not be used",
    )


@pytest.mark.parametrize(
    ("classes", "images", "said"),
    [
        ([2, 2], [100, 200], None),
        ([2, 2], [100, 201], "2 classes and 100 to 201 training images"),
        ([2, 3], [100, 100], "2 to 3 classes and 100 training images"),
    ],
)
def test_uneven_tasks(classes: list[int], images: list[int], said: str | None) -> None:
    tasks = [
        TaskContents("t", ("x",) * number, count, 1)
        for number, count in zip(classes, images, strict=True)
    ]
    texts = [finding.text for finding in uneven_tasks(tasks)]
    assert [said in text for text in texts] == [True] if said else texts == []
