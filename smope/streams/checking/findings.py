"""Findings on an inspected data set: what is wrong, what may spoil a result, what is worth knowing.

Each finding names all images that it is about.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smope.streams.checking.inspection import TRAITS, InspectedImage, Inspection, TaskContents
from smope.streams.layouts.listing import count_text, unreadable_text
from smope.streams.pixels.bit_depth import WAY_OUT

LEVELS = ("error", "warning", "note")
KINDS = {"train": "training", "test": "test"}
# test images that are also training images: an error above this fraction of all test images
MAX_OVERLAP_FRACTION = 0.01
# a class should have so many images, and a tenth of those of the median class
MIN_CLASS_IMAGES = {"train": 5, "test": 2}
SMALL_SIDE_PIXELS = 32
MAX_ASPECT_RATIO = 4  # longer over shorter side


@dataclass(frozen=True)
class FindingItem:
    """An image or class, or images that belong together; `detail` says what is wrong with them."""

    names: tuple[str, ...]
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """All items with the same problem.

    An error stops training or spoils its scores, a warning may do so, a note does neither.
    """

    kind: str
    level: Literal["error", "warning", "note"]
    text: str
    items: tuple[FindingItem, ...] = ()


def findings(inspection: Inspection) -> Iterator[Finding]:
    """Every finding on the images and classes of an inspected data set."""
    checks = (
        *(_unreadable, _missing_classes, _overlap, _contradictions, _small_classes, _traits),
        *(_assumed_ranges, _repeated, _sizes, _left_out, _unused),
    )
    for check in checks:
        yield from check(inspection)


def uneven_tasks(tasks: Sequence[TaskContents]) -> Iterator[Finding]:
    """A note where tasks differ in their classes, or by more than a factor of two in their
    training images.
    """
    classes = [len(task.classes) for task in tasks]
    images = [task.train for task in tasks]
    if min(classes) < max(classes) or 2 * min(images) < max(images):
        text = (
            f"the tasks are uneven: {_span(classes)} classes and {_span(images)} training images "
            "a task; in the scores each task counts the same"
        )
        yield Finding("uneven_tasks", "note", text)


def _number(count: int, one: str, many: str = "") -> str:
    """`1 image`, `1,200 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _items(images: Sequence[InspectedImage]) -> tuple[FindingItem, ...]:
    """One item for each image."""
    return tuple(FindingItem((image.name,)) for image in images)


def _group_items(groups: Sequence[Sequence[InspectedImage]]) -> tuple[FindingItem, ...]:
    """One item for each group of images."""
    return tuple(FindingItem(tuple(image.name for image in group)) for group in groups)


def _unreadable(inspection: Inspection) -> Iterator[Finding]:
    broken = [image for image in inspection.images if image.problem]
    if broken:
        pronoun = "it" if len(broken) == 1 else "them"
        text = (
            f"{_number(len(broken), 'image')} cannot be read; replace or remove {pronoun}, or "
            "train with stream.broken_images=skip"
        )
        items = tuple(FindingItem((image.name,), image.problem) for image in broken)
        yield Finding("unreadable", "error", text, items)


def _missing_classes(inspection: Inspection) -> Iterator[Finding]:
    names = inspection.source.class_names
    for split, kind in KINDS.items():
        counts = inspection.counts(split)
        missing = [name for name, count in zip(names, counts, strict=True) if not count]
        if missing:
            text = f"{_number(len(missing), 'class has', 'classes have')} no readable {kind} images"
            items = tuple(FindingItem((name,)) for name in missing)
            yield Finding("missing_class", "error", text, items)


def _overlap(inspection: Inspection) -> Iterator[Finding]:
    """Test images whose pixels are among the training images, however their files differ."""
    groups = [
        group
        for group in _equal(inspection.readable)
        if {image.split for image in group} == set(KINDS)
    ]
    overlapping = sum(image.split == "test" for group in groups for image in group)
    if overlapping:
        total = sum(inspection.counts("test"))
        are = "is" if overlapping == 1 else "are"
        share = f"{overlapping:,} of {total:,} test images ({100 * overlapping / total:.3g} %)"
        text = f"{share} {are} among the training images, pixel for pixel"
        level = "error" if overlapping > MAX_OVERLAP_FRACTION * total else "warning"
        yield Finding("in_both_splits", level, text, _group_items(groups))


def _contradictions(inspection: Inspection) -> Iterator[Finding]:
    class_names = inspection.source.class_names
    items = []
    for group in _equal(inspection.readable):
        labels = sorted({image.label for image in group})
        if len(labels) > 1:
            detail = "classes " + ", ".join(class_names[label] for label in labels)
            items.append(FindingItem(tuple(image.name for image in group), detail))
    if items:
        text = f"{_number(len(items), 'picture is', 'pictures are')} in more than one class"
        yield Finding("several_classes", "warning", text, tuple(items))


def _small_classes(inspection: Inspection) -> Iterator[Finding]:
    names = inspection.source.class_names
    for split, kind in KINDS.items():
        counts = inspection.counts(split)
        least = max(MIN_CLASS_IMAGES[split], statistics.median(counts) / 10)
        small = [
            (count, name) for name, count in zip(names, counts, strict=True) if 0 < count < least
        ]
        if small:
            text = (
                f"{_number(len(small), 'class has', 'classes have')} fewer than {least:.3g} "
                f"{kind} images"
            )
            small.sort(key=lambda pair: pair[0])
            items = tuple(FindingItem((name,), _number(count, "image")) for count, name in small)
            yield Finding("small_class", "warning", text, items)


def _traits(inspection: Inspection) -> Iterator[Finding]:
    for trait, treatment in TRAITS.items():
        images = [image for image in inspection.readable if trait in image.traits]
        if images:
            kind = trait.lower().replace(" ", "_").replace("-", "_")
            text = (
                f"{_number(len(images), f'{trait} image')}: {treatment}, in training and "
                "prediction alike"
            )
            yield Finding(kind, "warning", text, _items(images))


def _assumed_ranges(inspection: Inspection) -> Iterator[Finding]:
    images = [image for image in inspection.readable if image.assumed_range]
    if images:
        text = (
            f"{_number(len(images), 'image')} of more than 8 bits without a declared range, "
            f"perhaps too dark; {WAY_OUT}"
        )
        items = tuple(FindingItem((image.name,), image.assumed_range) for image in images)
        yield Finding("assumed_range", "warning", text, items)


def _repeated(inspection: Inspection) -> Iterator[Finding]:
    for split, kind in KINDS.items():
        groups = list(_equal([image for image in inspection.readable if image.split == split]))
        repeats = sum(len(group) - 1 for group in groups)
        if repeats:
            count = _number(repeats, f"{kind} image repeats", f"{kind} images repeat")
            text = f"{count} another {kind} image"
            yield Finding(f"repeated_in_{split}", "note", text, _group_items(groups))


def _sizes(inspection: Inspection) -> Iterator[Finding]:
    small = [image for image in inspection.readable if min(image.size) < SMALL_SIDE_PIXELS]
    long = [
        image
        for image in inspection.readable
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size)
    ]
    too_long = (
        f"more than {MAX_ASPECT_RATIO} times as long as wide; evaluation sees the central square"
    )
    texts = (
        ("small_image", small, f"less than {SMALL_SIDE_PIXELS} pixels wide or high"),
        ("long_image", long, too_long),
    )
    for kind, images, text in texts:
        if images:
            items = tuple(
                FindingItem((image.name,), f"{image.size[0]}x{image.size[1]}") for image in images
            )
            count = _number(len(images), "image is", "images are")
            yield Finding(kind, "note", f"{count} {text}", items)


def _left_out(inspection: Inspection) -> Iterator[Finding]:
    left_out = inspection.source.left_out
    for text in left_out.warnings():
        is_of_files = left_out.unreadable and text == unreadable_text(left_out.suffix_counts)
        paths = left_out.unreadable if is_of_files else ()
        yield Finding("left_out", "warning", text, _paths(paths))
    if left_out.service:
        count = _number(len(left_out.service), "file or folder", "files and folders")
        names = count_text(left_out.service_counts)
        text = f"{count} of other programs skipped by name: {names}"
        yield Finding("service_files", "note", text, _paths(left_out.service))
    if left_out.excluded:
        count = _number(len(left_out.excluded), "file or folder", "files and folders")
        text = f"{count} left out by stream.exclude"
        yield Finding("excluded", "note", text, _paths(left_out.excluded))


def _paths(paths: Sequence[Path]) -> tuple[FindingItem, ...]:
    """One item for each file or folder."""
    return tuple(FindingItem((str(path),)) for path in paths)


def _unused(inspection: Inspection) -> Iterator[Finding]:
    if inspection.unused:
        count = _number(len(inspection.unused), "file lies", "files lie")
        text = f"{count} beside the images and will not be used"
        items = tuple(FindingItem((name,)) for name in inspection.unused)
        yield Finding("unused_file", "note", text, items)


def _equal(images: Sequence[InspectedImage]) -> Iterator[list[InspectedImage]]:
    """The groups of two or more images that are equal pixel for pixel."""
    groups: dict[str, list[InspectedImage]] = {}
    for image in images:
        groups.setdefault(image.pixels, []).append(image)
    return (group for group in groups.values() if len(group) > 1)


def _span(counts: Sequence[int]) -> str:
    """`3`, or `3 to 1,200`."""
    if min(counts) == max(counts):
        return f"{min(counts):,}"
    return f"{min(counts):,} to {max(counts):,}"
