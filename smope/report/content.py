"""What a report is made of: sections of figures, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from smope.analysis.runs import Run
from smope.report.figures import Figure
from smope.report.grids import Grid


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
    """name: its anchor; lead: a sentence or two before everything else; note: small print after it."""

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
    """Runs for which logits were kept after every task."""
    return [run for run in runs if run.has_evidence]


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
