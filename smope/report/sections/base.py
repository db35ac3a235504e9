"""The parts of a section: figures, tables and pictures; and what several sections need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import pandas

from smope.analysis.labels import comparable, repeat_notes
from smope.analysis.run import Run
from smope.console.markup import Grid
from smope.report.figures import Figure

FROM_FOLDERS = ("folder", "domains", "table")  # streams of the user's own images
# Configurations that get a map of their own. A map of ten tasks takes 57 to 74 KB of the page.
MAX_MAPS = 8


@dataclass(frozen=True)
class Table:
    """A table; `words`: its cells are texts that may take several lines, and not numbers."""

    caption: str
    grid: Grid
    words: bool = False


@dataclass(frozen=True)
class Picture:
    """A test image as a file of type `media`, its text alternative, and the lines below it; shown
    with so many pixels a side.
    """

    file: bytes
    text: str
    lines: Sequence[str]
    media: str = "image/png"
    pixels: int = 96


@dataclass(frozen=True)
class Folded:
    """What is shown when it is opened: tables, and a text in a font of equal widths."""

    title: str
    tables: Sequence[Table] = ()
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    name:   its anchor.
    lead:   a sentence or two before everything else.
    folded: what is long, closed at first.
    note:   small print after everything else.
    """

    name: str
    title: str
    lead: str
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()
    definitions: Sequence[tuple[str, str]] = field(default_factory=tuple)
    folded: Sequence[Folded] = ()
    note: str = ""


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each configuration, in the order of the first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def with_snapshots(runs: Sequence[Run]) -> list[Run]:
    """The comparable runs whose logits were recorded after every task."""
    return [run for run in comparable(runs) if run.has_snapshots]


def without_snapshots(runs: Sequence[Run]) -> str:
    """A sentence that names the comparable runs without recorded logits, if there are any."""
    missing = [run.name for run in comparable(runs) if not run.has_snapshots]
    if not missing:
        return ""
    return f" Without runs that kept no logits (trainer.record): {', '.join(missing)}."


def stream_title(run: Run) -> str:
    """The name of the stream; of a stream from a folder, with the folder's name."""
    name = str(run.record["stream"]["name"])
    root = (run.record["config"].get("stream") or {}).get("root")
    folder = PurePath(str(root)).name if root and name in FROM_FOLDERS else ""
    return f"{name} {folder}" if folder else name


def not_counted(runs: Sequence[Run]) -> str:
    """Sentences on the runs that go into no mean; empty if all do."""
    text = ""
    number = len(runs) - len(comparable(runs))
    if number:
        reason = "with fewer tasks than others of its configuration"
        text += f" Left out: {plural(number, 'run')}, each {reason}."
    for note in repeat_notes(runs):
        text += f" {note}."
    return text


def not_shown(groups: Mapping[str, Sequence[Run]], most: int, what: str) -> str:
    """A sentence on the configurations that are left out so that the page stays small.

    Args:
        groups: Runs by label; the first `most` are shown.
        most: How many configurations are shown.
        what: What the others have no figures of.

    Returns:
        An empty text if all are shown.
    """
    rest = list(groups)[most:]
    if not rest:
        return ""
    return (
        f" Without {what}, to keep the page small: {', '.join(rest)}. Make a report of these alone."
    )


def plural(number: int, noun: str, many: str = "") -> str:
    """`1 run`, `2 runs`.

    Args:
        number: How many.
        noun: For one.
        many: For several, by default the noun with an s.

    Returns:
        Number and noun.
    """
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def mean_of_last_rows(frames: Sequence[pandas.DataFrame]) -> pandas.Series:
    """The mean over frames of each column of their last rows."""
    mean: Any = pandas.DataFrame([frame.iloc[-1] for frame in frames]).mean()
    return mean
