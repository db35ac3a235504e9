"""What of an inspected data set is wrong, may spoil a result, or is to be known; every image
concerned is named.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from smope.streams.checking.inspection import TRAITS, Inspection, Look, TaskContents

LEVELS = ("error", "warning", "note")
KINDS = {"train": "training", "test": "test"}
MOST_OVERLAP = 0.01  # of the test images may be among the training images before that is an error
# images that a class should have, and a tenth of what the median class has
FEWEST = {
    "train": 5,
    "test": 2,
}
SMALL_SIDE = 32  # pixels
LONG_SHAPE = 4  # longer over shorter side


@dataclass(frozen=True)
class Item:
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
    items: tuple[Item, ...] = ()


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
    items = tuple(Item((look.name,), look.problem) for look in inspection.looks if look.problem)
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
            yield Finding("missing_class", "error", text, tuple(Item((name,)) for name in missing))


def _overlap(inspection: Inspection) -> Iterator[Finding]:
    """Test images whose very pixels are among the training images, however their files differ."""
    shared = [
        same for same in _equal(inspection.readable) if {look.split for look in same} == set(KINDS)
    ]
    overlapping = sum(look.split == "test" for same in shared for look in same)
    if overlapping:
        total = sum(inspection.counts("test"))
        are = "is" if overlapping == 1 else "are"
        share = f"{overlapping:,} of {total:,} test images ({100 * overlapping / total:.3g} %)"
        text = f"{share} {are} among the training images, pixel for pixel"
        level = "error" if overlapping > MOST_OVERLAP * total else "warning"
        yield Finding("in_both_splits", level, text, tuple(Item(_names(same)) for same in shared))


def _contradictions(inspection: Inspection) -> Iterator[Finding]:
    names = inspection.source.class_names
    items = []
    for same in _equal(inspection.readable):
        labels = sorted({look.label for look in same})
        if len(labels) > 1:
            items.append(
                Item(_names(same), "classes " + ", ".join(names[label] for label in labels))
            )
    if items:
        text = f"{_number(len(items), 'picture is', 'pictures are')} in more than one class"
        yield Finding("several_classes", "warning", text, tuple(items))


def _small_classes(inspection: Inspection) -> Iterator[Finding]:
    for split, kind in KINDS.items():
        counts = inspection.counts(split)
        least = max(FEWEST[split], statistics.median(counts) / 10)
        few = [
            (name, n)
            for name, n in zip(inspection.source.class_names, counts, strict=True)
            if 0 < n < least
        ]
        if few:
            text = f"{_number(len(few), 'class has', 'classes have')} fewer than {least:.3g} {kind} images"
            items = tuple(
                Item((name,), _number(n, "image"))
                for name, n in sorted(few, key=lambda pair: pair[1])
            )
            yield Finding("small_class", "warning", text, items)


def _traits(inspection: Inspection) -> Iterator[Finding]:
    for trait, treatment in TRAITS.items():
        items = tuple(Item((look.name,)) for look in inspection.readable if trait in look.traits)
        if items:
            text = f"{_number(len(items), f'{trait} image')}: {treatment}, in training and prediction alike"
            yield Finding(trait.lower().replace(" ", "_").replace("-", "_"), "warning", text, items)


def _repeated(inspection: Inspection) -> Iterator[Finding]:
    for split, kind in KINDS.items():
        groups = list(_equal([look for look in inspection.readable if look.split == split]))
        repeats = sum(len(same) - 1 for same in groups)
        if repeats:
            text = f"{_number(repeats, f'{kind} image repeats', f'{kind} images repeat')} another {kind} image"
            yield Finding(
                f"repeated_in_{split}", "note", text, tuple(Item(_names(same)) for same in groups)
            )


def _sizes(inspection: Inspection) -> Iterator[Finding]:
    small = [look for look in inspection.readable if min(look.size) < SMALL_SIDE]
    long = [look for look in inspection.readable if max(look.size) > LONG_SHAPE * min(look.size)]
    texts = (
        ("small_image", small, f"less than {SMALL_SIDE} pixels wide or high"),
        (
            "long_image",
            long,
            f"more than {LONG_SHAPE} times as long as wide; evaluation sees the central square",
        ),
    )
    for kind, looks, text in texts:
        if looks:
            items = tuple(Item((look.name,), "{}x{}".format(*look.size)) for look in looks)
            yield Finding(
                kind, "note", f"{_number(len(looks), 'image is', 'images are')} {text}", items
            )


def _unused(inspection: Inspection) -> Iterator[Finding]:
    if inspection.unused:
        text = f"{_number(len(inspection.unused), 'file lies', 'files lie')} beside the images and will not be used"
        yield Finding(
            "unused_file", "note", text, tuple(Item((name,)) for name in inspection.unused)
        )


def _equal(looks: Sequence[Look]) -> Iterator[list[Look]]:
    """The images that are equal pixel for pixel, together, where there is more than one."""
    groups: dict[str, list[Look]] = {}
    for look in looks:
        groups.setdefault(look.pixels, []).append(look)
    return (same for same in groups.values() if len(same) > 1)


def _names(looks: Sequence[Look]) -> tuple[str, ...]:
    return tuple(look.name for look in looks)


def _span(counts: Sequence[int]) -> str:
    return (
        f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    )
