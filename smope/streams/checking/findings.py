"""What of an inspected data set is wrong, may spoil a result, or is to be known; every image
concerned is named.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from smope.streams.checking.inspection import TRAITS, InspectedImage, Inspection, TaskContents

LEVELS = ("error", "warning", "note")
KINDS = {"train": "training", "test": "test"}
MAX_OVERLAP_FRACTION = (
    0.01  # of the test images may be among the training images before that is an error
)
# images that a class should have, and a tenth of what the median class has
MIN_CLASS_IMAGES = {
    "train": 5,
    "test": 2,
}
SMALL_SIDE_PIXELS = 32  # pixels
MAX_ASPECT_RATIO = 4  # longer over shorter side


@dataclass(frozen=True)
class FindingItem:
    """An image or class, or images that belong together; `detail` says what is the matter with
    them.
    """

    names: tuple[str, ...]
    detail: str = ""


@dataclass(frozen=True)
class Finding:
    """Things of one kind.

    An error stops training or spoils its scores, a warning may, a note is to be known.
    """

    kind: str
    level: Literal["error", "warning", "note"]
    text: str
    items: tuple[FindingItem, ...] = ()


def findings(inspection: Inspection) -> Iterator[Finding]:
    """Everything to be said of the images and classes of an inspected data set."""
    checks = (
        *(_unreadable, _missing_classes, _overlap, _contradictions, _small_classes, _traits),
        *(_repeated, _sizes, _unused),
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
        text = f"the tasks are uneven: {_span(classes)} classes and {_span(images)} training images a task"
        yield Finding("uneven_tasks", "note", f"{text}; in the scores each task counts the same")


def _number(count: int, one: str, many: str = "") -> str:
    """`1 image`, `1,200 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _unreadable(inspection: Inspection) -> Iterator[Finding]:
    items = tuple(
        FindingItem((image.name,), image.problem) for image in inspection.images if image.problem
    )
    if items:
        text = f"{_number(len(items), 'image')} cannot be read; replace or remove {'it' if len(items) == 1 else 'them'}"
        yield Finding(
            "unreadable", "error", f"{text}, or train with stream.broken_images=skip", items
        )


def _missing_classes(inspection: Inspection) -> Iterator[Finding]:
    for split, kind in KINDS.items():
        missing = [
            name
            for name, n in zip(inspection.source.class_names, inspection.counts(split), strict=True)
            if not n
        ]
        if missing:
            text = f"{_number(len(missing), 'class has', 'classes have')} no readable {kind} images"
            yield Finding(
                "missing_class", "error", text, tuple(FindingItem((name,)) for name in missing)
            )


def _overlap(inspection: Inspection) -> Iterator[Finding]:
    """Test images whose very pixels are among the training images, however their files differ."""
    shared = [
        same
        for same in _equal(inspection.readable)
        if {image.split for image in same} == set(KINDS)
    ]
    overlapping = sum(image.split == "test" for same in shared for image in same)
    if overlapping:
        total = sum(inspection.counts("test"))
        are = "is" if overlapping == 1 else "are"
        share = f"{overlapping:,} of {total:,} test images ({100 * overlapping / total:.3g} %)"
        text = f"{share} {are} among the training images, pixel for pixel"
        level = "error" if overlapping > MAX_OVERLAP_FRACTION * total else "warning"
        yield Finding(
            "in_both_splits", level, text, tuple(FindingItem(_names(same)) for same in shared)
        )


def _contradictions(inspection: Inspection) -> Iterator[Finding]:
    names = inspection.source.class_names
    items = []
    for same in _equal(inspection.readable):
        labels = sorted({image.label for image in same})
        if len(labels) > 1:
            items.append(
                FindingItem(_names(same), "classes " + ", ".join(names[label] for label in labels))
            )
    if items:
        text = f"{_number(len(items), 'picture is', 'pictures are')} in more than one class"
        yield Finding("several_classes", "warning", text, tuple(items))


def _small_classes(inspection: Inspection) -> Iterator[Finding]:
    for split, kind in KINDS.items():
        counts = inspection.counts(split)
        least = max(MIN_CLASS_IMAGES[split], statistics.median(counts) / 10)
        few = [
            (name, n)
            for name, n in zip(inspection.source.class_names, counts, strict=True)
            if 0 < n < least
        ]
        if few:
            text = f"{_number(len(few), 'class has', 'classes have')} fewer than {least:.3g} {kind} images"
            items = tuple(
                FindingItem((name,), _number(n, "image"))
                for name, n in sorted(few, key=lambda pair: pair[1])
            )
            yield Finding("small_class", "warning", text, items)


def _traits(inspection: Inspection) -> Iterator[Finding]:
    for trait, treatment in TRAITS.items():
        items = tuple(
            FindingItem((image.name,)) for image in inspection.readable if trait in image.traits
        )
        if items:
            text = f"{_number(len(items), f'{trait} image')}: {treatment}, in training and prediction alike"
            yield Finding(trait.lower().replace(" ", "_").replace("-", "_"), "warning", text, items)


def _repeated(inspection: Inspection) -> Iterator[Finding]:
    for split, kind in KINDS.items():
        groups = list(_equal([image for image in inspection.readable if image.split == split]))
        repeats = sum(len(same) - 1 for same in groups)
        if repeats:
            text = f"{_number(repeats, f'{kind} image repeats', f'{kind} images repeat')} another {kind} image"
            yield Finding(
                f"repeated_in_{split}",
                "note",
                text,
                tuple(FindingItem(_names(same)) for same in groups),
            )


def _sizes(inspection: Inspection) -> Iterator[Finding]:
    small = [image for image in inspection.readable if min(image.size) < SMALL_SIDE_PIXELS]
    long = [
        image
        for image in inspection.readable
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size)
    ]
    texts = (
        ("small_image", small, f"less than {SMALL_SIDE_PIXELS} pixels wide or high"),
        (
            "long_image",
            long,
            f"more than {MAX_ASPECT_RATIO} times as long as wide; evaluation sees the central square",
        ),
    )
    for kind, images, text in texts:
        if images:
            items = tuple(
                FindingItem((image.name,), "{}x{}".format(*image.size)) for image in images
            )
            yield Finding(
                kind, "note", f"{_number(len(images), 'image is', 'images are')} {text}", items
            )


def _unused(inspection: Inspection) -> Iterator[Finding]:
    if inspection.unused:
        text = f"{_number(len(inspection.unused), 'file lies', 'files lie')} beside the images and will not be used"
        yield Finding(
            "unused_file", "note", text, tuple(FindingItem((name,)) for name in inspection.unused)
        )


def _equal(images: Sequence[InspectedImage]) -> Iterator[list[InspectedImage]]:
    """The images that are equal pixel for pixel, together, where there is more than one."""
    groups: dict[str, list[InspectedImage]] = {}
    for image in images:
        groups.setdefault(image.pixels, []).append(image)
    return (same for same in groups.values() if len(same) > 1)


def _names(images: Sequence[InspectedImage]) -> tuple[str, ...]:
    return tuple(image.name for image in images)


def _span(counts: Sequence[int]) -> str:
    return (
        f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    )
