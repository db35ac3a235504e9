"""The result of `smope data check`, as text for the screen and as plain values for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from smope.streams.checking.findings import KINDS, FindingItem
from smope.streams.checking.inspection import InspectedImage, Inspection, TaskContents
from smope.streams.layouts.splits import describe_split

if TYPE_CHECKING:
    from smope.run.data_check import DataReport

SHOWN_ITEMS = {"error": 20, "warning": 10, "note": 3}  # on the screen, of each finding
SHOWN_NAMES = 4  # of images that are the same picture
SHOWN_CLASSES = 5
OWN_IMAGES = ("folder", "table", "domains")
WHICH_METHOD = """
which method? (the README has the accuracies behind this)
  method=ncm         one pass over the images, nothing is trained
  method=ridge       one pass and a linear fit: more accurate, a good start
  method=smope_plus  also trains on the first task: the most accurate with 50 images a class
  method=smope       the paper's method: trains on every task, for research"""


def document(report: DataReport) -> dict[str, Any]:
    """Everything as plain values; None for what is unknown."""
    return {
        "root": str(report.root),
        "stream": report.stream,
        "recognised_by": report.mark or None,
        "content_hash": report.content_hash,
        **_contents(report.inspection),
        "evaluated_on": report.evaluated_on,
        "tasks": None if report.tasks is None else [asdict(task) for task in report.tasks],
        "findings": [asdict(finding) for finding in report.findings],
        **{f"{level}s": report.count(level) for level in SHOWN_ITEMS},
    }


def lines(report: DataReport) -> Iterator[str]:
    """The report for the screen: every finding, with the first of its items."""
    recognised = f", recognised by {report.mark}" if report.mark else ""
    yield f"{report.root} as stream={report.stream}{recognised}"
    if report.inspection is not None:
        yield from _overview(report.inspection)
    if report.tasks is not None:
        yield from _tasks(report.tasks, report.evaluated_on)
    if report.content_hash is not None:
        yield _content_hash(report)
    for finding in report.findings:
        most = SHOWN_ITEMS[finding.level]
        yield f"\n{finding.level}: {finding.text}"
        yield from (f"  {_text(item)}" for item in finding.items[:most])
        if len(finding.items) > most:
            yield f"  and {len(finding.items) - most:,} more, all in --json"
    if report.stream in OWN_IMAGES and not report.count("error"):
        yield WHICH_METHOD
    yield f"\n{_verdict(report)}"


def _content_hash(report: DataReport) -> str:
    inspection = report.inspection
    some_are_broken = inspection is not None and any(image.problem for image in inspection.images)
    of_readable = " of the images that can be read" if some_are_broken else ""
    return f"\ncontent hash{of_readable}, as in run.json: {report.content_hash}"


def _contents(inspection: Inspection | None) -> dict[str, Any]:
    if inspection is None:
        return dict.fromkeys(("facts", "splits", "classes", "image_sizes"))
    counts = [inspection.counts(split) for split in KINDS]
    extremes = _smallest_and_largest(inspection)
    return {
        "facts": {**inspection.source.facts, **inspection.source.left_out.facts()},
        "splits": {split: _spread(inspection, split) for split in KINDS},
        "classes": [
            {"name": name, "train": train, "test": test}
            for name, train, test in zip(inspection.source.class_names, *counts, strict=True)
        ],
        "image_sizes": [
            {"name": image.name, "width": image.size[0], "height": image.size[1]}
            for image in extremes
        ],
    }


def _spread(inspection: Inspection, split: str) -> dict[str, Any]:
    """Readable images of a split, in all and in the smallest, the median and the largest class; and
    unreadable ones.
    """
    counts = inspection.counts(split)
    broken = [image for image in inspection.images if image.split == split and image.problem]
    return {
        "images": sum(counts),
        "unreadable": len(broken),
        "fewest": min(counts),
        "median": statistics.median(counts),
        "most": max(counts),
    }


def _smallest_and_largest(inspection: Inspection) -> list[InspectedImage]:
    by_area = sorted(inspection.readable, key=lambda image: image.size[0] * image.size[1])
    return [by_area[0], by_area[-1]] if by_area else []


def _overview(inspection: Inspection) -> Iterator[str]:
    class_names = inspection.source.class_names
    yield f"\n{len(class_names):,} class{'es' * (len(class_names) != 1)}\n"
    of_a_class = f"     a class: {'fewest':>7}{'median':>9}{'most':>9}"
    yield f"{'':<10}{'images':>9}{'unreadable':>12}{of_a_class}"
    for split, kind in KINDS.items():
        row = _spread(inspection, split)
        spread = f"{row['fewest']:>21,}{row['median']:>9,g}{row['most']:>9,}"
        yield f"{kind:<10}{row['images']:>9,}{row['unreadable']:>12,}{spread}"
    yield ""
    drawn = describe_split(inspection.source.facts)
    if drawn:
        yield drawn
    for split, kind in KINDS.items():
        yield from _uneven_classes(kind, class_names, inspection.counts(split))
    extremes = [
        f"{image.size[0]}x{image.size[1]} ({image.name})"
        for image in _smallest_and_largest(inspection)
    ]
    if extremes:
        yield f"image sizes: {' to '.join(extremes)}"


def _uneven_classes(kind: str, names: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    """All classes by their number of images, or the first and last few; nothing if all classes have
    the same number.
    """
    if min(counts) == max(counts):
        return
    ordered = [f"{name} {count:,}" for count, name in sorted(zip(counts, names, strict=True))]
    if len(ordered) <= 2 * SHOWN_CLASSES:
        yield f"{kind} images a class: {', '.join(ordered)}"
        return
    yield f"classes with the fewest {kind} images: {', '.join(ordered[:SHOWN_CLASSES])}"
    largest_first = ordered[::-1][:SHOWN_CLASSES]
    yield f"classes with the most {kind} images: {', '.join(largest_first)}"


def _tasks(tasks: Sequence[TaskContents], evaluated_on: str) -> Iterator[str]:
    width = max(len(task.name) for task in tasks)
    yield f"\n{'':<{width}}{'classes':>9}{'training':>10}{evaluated_on:>12}"
    for task in tasks:
        names = _first_few(", ", task.classes, SHOWN_CLASSES)
        counts = f"{len(task.classes):>9,}{task.train:>10,}{task.test:>12,}"
        yield f"{task.name:<{width}}{counts}   {names}"


def _text(item: FindingItem) -> str:
    names = _first_few(" = ", item.names, SHOWN_NAMES)
    return f"{names}: {item.detail}" if item.detail else names


def _first_few(separator: str, names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def _verdict(report: DataReport) -> str:
    errors, warnings = report.count("error"), report.count("warning")
    if not errors and not warnings:
        return "nothing is wrong"
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
