"""The parts of a section: figures, tables and pictures; and what several sections need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas

from smope.analysis.labels import comparable, repeat_notes
from smope.analysis.run import Run
from smope.console.markup import Grid
from smope.report.figures import Figure

# Configurations that get a map of their own. A map of ten tasks takes 57 to 74 KB of the page.
MAX_MAPS = 8


@dataclass(frozen=True)
class Table:
    caption: str
    grid: Grid


@dataclass(frozen=True)
class Picture:
    """A test image as a PNG, its text alternative, and the lines below it."""

    png: bytes
    text: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    name: its anchor.
    lead: a sentence or two before everything else.
    note: small print after everything else.
    """

    name: str
    title: str
    lead: str
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()
    definitions: Sequence[tuple[str, str]] = field(default_factory=tuple)
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


def plural(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def mean_of_last_rows(frames: Sequence[pandas.DataFrame]) -> pandas.Series:
    """The mean over frames of each column of their last rows."""
    mean: Any = pandas.DataFrame([frame.iloc[-1] for frame in frames]).mean()
    return mean
