"""What a report is made of: sections of figures, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from smope.analysis.runs import Run, comparable
from smope.console.markup import Grid
from smope.report.figures import Figure

# configurations that have a map of a kind to themselves; one of ten tasks takes 57 to 74 KB of a
# page
MAPS = 8


@dataclass(frozen=True)
class Table:
    caption: str
    grid: Grid


@dataclass(frozen=True)
class Picture:
    """A test image as a PNG, what is to be seen, and lines below it."""

    png: bytes
    text: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Section:
    """name: its anchor; lead: a sentence or two before everything else; note: small print after
    it.
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
    """Runs of one configuration together, in the order in which they come."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def with_evidence(runs: Sequence[Run]) -> list[Run]:
    """Of the runs that a mean may be taken of, those for which logits were kept after every task."""
    return [run for run in comparable(runs) if run.has_evidence]


def without_evidence(runs: Sequence[Run]) -> str:
    """A sentence on the runs that scores count and that with_evidence leaves out; none where there
    are none.
    """
    counted, kept = comparable(runs), with_evidence(runs)
    missing = [run.name for run in counted if run not in kept]
    return (
        f" Without runs that kept no logits (trainer.record): {', '.join(missing)}."
        if missing
        else ""
    )


def not_shown(groups: Mapping[str, Sequence[Run]], most: int, what: str) -> str:
    """A sentence on the configurations that a section leaves out so that a page stays small; none
    where none is.
    """
    rest = list(groups)[most:]
    return (
        f" Without {what}, to keep the page small: {', '.join(rest)}. Make a report of these alone."
        if rest
        else ""
    )


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
