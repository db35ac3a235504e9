"""What `smope data check` found, as text for the screen and as plain values for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from smope.streams.checking.findings import KINDS, FindingItem
from smope.streams.checking.inspection import InspectedImage, Inspection, TaskContents

if TYPE_CHECKING:
    from smope.run.data_check import DataReport

SHOWN_ITEMS = {"error": 20, "warning": 10, "note": 3}  # on the screen, of each finding
SHOWN_NAMES = 4  # of images that are the same picture
SHOWN_CLASSES = 5


def document(report: DataReport) -> dict[str, Any]:
    """Everything, as plain values; None for what could not be found out."""
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
    """The report for the screen: every finding, of each its first images."""
    yield f"{report.root} as stream={report.stream}" + (
        f", recognised by {report.mark}" if report.mark else ""
    )
    if report.inspection is not None:
        yield from _overview(report.inspection)
    if report.tasks is not None:
        yield from _tasks(report.tasks, report.evaluated_on)
    if report.content_hash is not None:
        broken = report.inspection is not None and len(report.inspection.readable) < len(
            report.inspection.images
        )
        yield f"\ncontent hash{' of the images that can be read' * broken}, as in run.json: {report.content_hash}"
    for finding in report.findings:
        most = SHOWN_ITEMS[finding.level]
        yield f"\n{finding.level}: {finding.text}"
        yield from (f"  {_text(item)}" for item in finding.items[:most])
        if len(finding.items) > most:
            yield f"  and {len(finding.items) - most:,} more, all in --json"
    yield f"\n{_verdict(report)}"


def _contents(inspection: Inspection | None) -> dict[str, Any]:
    if inspection is None:
        return dict.fromkeys(("facts", "splits", "classes", "image_sizes"))
    counts = [inspection.counts(split) for split in KINDS]
    extremes = _smallest_and_largest(inspection)
    return {
        "facts": dict(inspection.source.facts),
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
    """Readable images of a split: in all, in the smallest, the median and the largest class; and
    unreadable ones.
    """
    counts = inspection.counts(split)
    return {
        "images": sum(counts),
        "unreadable": sum(
            image.split == split and image.problem != "" for image in inspection.images
        ),
        "fewest": min(counts),
        "median": statistics.median(counts),
        "most": max(counts),
    }


def _smallest_and_largest(inspection: Inspection) -> list[InspectedImage]:
    by_area = sorted(inspection.readable, key=lambda image: image.size[0] * image.size[1])
    return [by_area[0], by_area[-1]] if by_area else []


def _overview(inspection: Inspection) -> Iterator[str]:
    classes = len(inspection.source.class_names)
    yield f"\n{classes:,} class{'es' * (classes != 1)}\n"
    yield f"{'':<10}{'images':>9}{'unreadable':>12}     a class: {'fewest':>7}{'median':>9}{'most':>9}"
    for split, kind in KINDS.items():
        row = _spread(inspection, split)
        spread = f"{row['fewest']:>21,}{row['median']:>9,g}{row['most']:>9,}"
        yield f"{kind:<10}{row['images']:>9,}{row['unreadable']:>12,}{spread}"
    yield ""
    for split, kind in KINDS.items():
        yield from _uneven_classes(kind, inspection.source.class_names, inspection.counts(split))
    extremes = _smallest_and_largest(inspection)
    if extremes:
        yield f"image sizes: {' to '.join(f'{image.size[0]}x{image.size[1]} ({image.name})' for image in extremes)}"


def _uneven_classes(kind: str, names: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    """All classes by their number of images, or the first and last few; nothing where they all
    have the same.
    """
    ordered = [f"{name} {count:,}" for count, name in sorted(zip(counts, names, strict=True))]
    if min(counts) == max(counts):
        return
    if len(ordered) <= 2 * SHOWN_CLASSES:
        yield f"{kind} images a class: {', '.join(ordered)}"
    else:
        yield f"classes with the fewest {kind} images: {', '.join(ordered[:SHOWN_CLASSES])}"
        yield f"classes with the most {kind} images: {', '.join(ordered[: -SHOWN_CLASSES - 1 : -1])}"


def _tasks(tasks: Sequence[TaskContents], evaluated_on: str) -> Iterator[str]:
    width = max(len(task.name) for task in tasks)
    yield f"\n{'':<{width}}{'classes':>9}{'training':>10}{evaluated_on:>12}"
    for task in tasks:
        more = len(task.classes) - SHOWN_CLASSES
        names = ", ".join(task.classes[:SHOWN_CLASSES]) + (
            f" and {more:,} more" if more > 0 else ""
        )
        yield f"{task.name:<{width}}{len(task.classes):>9,}{task.train:>10,}{task.test:>12,}   {names}"


def _text(item: FindingItem) -> str:
    more = len(item.names) - SHOWN_NAMES
    names = " = ".join(item.names[:SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
    return f"{names}: {item.detail}" if item.detail else names


def _verdict(report: DataReport) -> str:
    errors, warnings = report.count("error"), report.count("warning")
    found = f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"
    return found if errors or warnings else "nothing is wrong"
