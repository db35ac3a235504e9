"""What a published number is, and the rule by which a repeat is compared with it; rows.py has the
numbers.

Numbers are in percent and standard deviations over seeds have ddof 0. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from smope.config.identity import immaterial
from smope.config.value_types import shown
from smope.metrics.scores import SCORES, recorded_scores

PAPER, REPEAT = "the paper", "independent repeat"
UNTRAINED_WEIGHTS = ("random", "embedded")
RULE = (
    "Inside means |difference| <= 2 s sqrt(1/n + 1/m) for means over n and m seeds, where s is "
    "the standard deviation over seeds, pooled from the paper's, where it prints one, and ours, "
    "where there are several. A faithful repeat is inside about nine times in ten where the paper "
    "prints its deviation."
)


@dataclass(frozen=True)
class SeedMean:
    """A mean over `seeds` runs and its standard deviation; None if that is not known."""

    mean: float
    std: float | None = None
    seeds: int = 5

    def __str__(self) -> str:
        if self.std is None or self.seeds == 1:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table of a paper.

    data:   the images in words.
    paper:  the published scores, by the names of `metrics.scores.SCORES`.
    repeat: the scores of an independent repeat.
    facts:  what run.json says of the stream if its images are those of the paper.
    note:   what a reader of a card has to know.
    source: the paper, in short.
    """

    title: str
    data: str
    train_images: int
    test_images: int
    paper: Mapping[str, SeedMean] = field(default_factory=dict)
    repeat: Mapping[str, SeedMean] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    source: str = "Le et al. 2026"


@dataclass(frozen=True)
class ScoreComparison:
    """One score of ours beside a reported one.

    source:  who reported it, PAPER or REPEAT.
    allowed: the largest difference that counts as inside; None if it is not judged.
    """

    score: str
    source: str
    reported: SeedMean
    ours: SeedMean
    allowed: float | None

    @property
    def difference(self) -> float:
        return self.ours.mean - self.reported.mean

    @property
    def verdict(self) -> str:
        if self.allowed is None:
            return "not judged"
        if abs(self.difference) <= self.allowed:
            return "inside"
        return "outside, above" if self.difference > 0 else "outside, below"


def allowed_difference(
    ours: SeedMean, reported: SeedMean, spreads: Sequence[SeedMean]
) -> float | None:
    """2 s sqrt(1/n + 1/m), the two-sample rule of equal spreads at two standard errors.

    s is pooled: s² = Σ seeds·std² / Σ (seeds - 1). With the paper's std and 1 to 5 seeds of ours it
    has 4 to 8 degrees of freedom, so that a faithful repeat is inside in 88 to 92 of 100 cases.

    Args:
        ours: Our mean over n seeds.
        reported: The reported mean over m seeds.
        spreads: The means whose standard deviations are pooled, if they are known.

    Returns:
        None if no spread is known, as for a single seed of ours against a number without one.
    """
    known = [(item.seeds, item.std) for item in spreads if item.std is not None]
    freedom = sum(seeds - 1 for seeds, _ in known)
    if freedom < 1:
        return None
    pooled = math.sqrt(sum(seeds * std**2 for seeds, std in known) / freedom)
    return 2 * pooled * math.sqrt(1 / ours.seeds + 1 / reported.seeds)


def means(records: Sequence[Mapping[str, Any]]) -> dict[str, SeedMean]:
    """Our scores over seeds, from the run.json of each finished run.

    A score that some run does not have is left out.
    """
    scores = [percent_scores(record) for record in records]
    ours = {}
    for name in SCORES:
        values = [run_scores[name] for run_scores in scores if name in run_scores]
        if values and len(values) == len(scores):
            ours[name] = SeedMean(fmean(values), pstdev(values), len(values))
    return ours


def percent_scores(record: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a run.json in percent, without those that it does not have."""
    scores = recorded_scores(record)
    return {name: 100 * value for name, value in scores.items() if value is not None}


def compare_scores(
    row: PublishedRow, ours: Mapping[str, SeedMean], judge: bool = True
) -> list[ScoreComparison]:
    """Our scores beside every score that was reported for the row.

    Args:
        row: The published row.
        ours: Our scores by name.
        judge: Whether to judge differences; otherwise they are only shown.
    """
    comparisons = []
    for source, reports in ((PAPER, row.paper), (REPEAT, row.repeat)):
        for score, reported in reports.items():
            spreads = [ours[score], row.paper[score]] if score in row.paper else [ours[score]]
            allowed = allowed_difference(ours[score], reported, spreads) if judge else None
            comparisons.append(ScoreComparison(score, source, reported, ours[score], allowed))
    return comparisons


def changed_settings(row: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """The settings that differ from the row's: `trainer.epochs=1 (20)`, the row's in brackets.

    Args:
        row: The row's settings by dotted key.
        run: The run's settings by dotted key.
    """
    changed = []
    for key, value in run.items():
        if immaterial(key, run):
            continue
        expected = row.get(key, "not in the row")
        if key == "backbone.weights":
            is_equal = _weights_kind(value) == _weights_kind(expected)
        else:
            is_equal = value == expected
        if not is_equal:
            changed.append(f"{key}={shown(value)} ({shown(expected)})")
    return changed


def _weights_kind(value: str) -> str:
    """The same for a download and a file of trained weights, which their hash tells apart."""
    return value if value in UNTRAINED_WEIGHTS else "trained"


def images(record: Mapping[str, Any]) -> dict[str, int]:
    """Training and test images of a run, all tasks together."""
    return {split: sum(task[split] for task in record["tasks"]) for split in ("train", "test")}


def changed_data(
    row: PublishedRow, numbers: Mapping[str, int], facts: Mapping[str, Any]
) -> list[str]:
    """How images differ from the row's, a text for each difference.

    Args:
        row: The published row.
        numbers: Numbers of images by split, see `images`.
        facts: What the stream says of its images (`stream` in run.json).
    """
    actual = {**facts, "train images": numbers["train"], "test images": numbers["test"]}
    expected = {"train images": row.train_images, "test images": row.test_images, **row.facts}
    return [
        f"{key}={actual.get(key)} ({value})"
        for key, value in expected.items()
        if actual.get(key) != value
    ]


def verdict(
    row: PublishedRow, changed: Sequence[str], comparisons: Sequence[ScoreComparison]
) -> tuple[str, str]:
    """The result of the comparison with the paper.

    Args:
        row: The published row.
        changed: The settings and data that differ from the row's.
        comparisons: The scores compared.

    Returns:
        The verdict in a word or two, and a sentence.
    """
    if changed:
        return "not a reproduction", f"this is not the row: changed {', '.join(changed)}"
    if not row.paper:
        return (
            "nothing to compare",
            "the numbers are recorded; there is no published one to compare them with",
        )
    judged = [item for item in comparisons if item.source == PAPER and item.allowed is not None]
    outside = [item for item in judged if item.verdict != "inside"]
    if not judged:
        return "not judged", "one seed, and no published standard deviation: run more seeds"
    if outside:
        parts = [
            f"{SCORES[item.score].short} by {item.difference:+.2f} ({item.allowed:.2f} allowed)"
            for item in outside
        ]
        return "outside", f"differs from the paper in {', '.join(parts)}"
    return (
        "inside",
        f"agrees with the paper in {' and '.join(SCORES[item.score].short for item in judged)}",
    )
