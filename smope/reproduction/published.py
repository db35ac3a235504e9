"""The paper's rows: what was published, and how a repeat is compared with it.

Numbers are percent, standard deviations over seeds have ddof 0, both as the paper prints them.
Imports no torch.
Source: Le et al. 2026 (arXiv 2509.24483), seeds 0-4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from smope.config.identity import immaterial
from smope.config.value_types import shown

SCORES = {
    "final_average_accuracy": "FAA",
    "cumulative_average_accuracy": "CAA",
    "forgetting": "forgetting",
}
PAPER, REPEAT = "the paper", "independent repeat"
UNTRAINED = ("random", "embedded")
RULE = (
    "Inside means |difference| <= 2 s sqrt(1/n + 1/m) for means over n and m seeds, where s is "
    "the standard deviation "
    "over seeds, pooled from the paper's, where it prints one, and ours, where there are several. "
    "A faithful repeat is inside about nine times in ten where the paper prints its deviation."
)


@dataclass(frozen=True)
class Mean:
    """A mean over `seeds` runs; std None where it is not known."""

    mean: float
    std: float | None = None
    seeds: int = 5

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (
            f" ± {self.std:.2f}" if self.std is not None and self.seeds > 1 else ""
        )


@dataclass(frozen=True)
class Row:
    """A published row: its images, its scores by name, and what a reader of a card has to know.

    data: the images in words. facts: what a stream says of itself (run.json) when its images are
    those of the paper.
    """

    title: str
    data: str
    train_images: int
    test_images: int
    paper: Mapping[str, Mean] = field(default_factory=dict)
    repeat: Mapping[str, Mean] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def _imagenet_r(tasks: int, backbone: str, paper: Mapping[str, Mean], note: str = "") -> Row:
    title = f"SMoPE on ImageNet-R, {tasks} tasks, {backbone}"
    return Row(
        title, _IMAGENET_R, 24_000, 6_000, paper, facts={"split": "published lists"}, note=note
    )


_IMAGENET_R = (
    "ImageNet-R with the split lists published with CODA-Prompt, imagenet-r_train.yaml and "
    "imagenet-r_test.yaml, in "
    "stream.root or in stream.split_lists=<folder>"
)
_NO_NUMBER = (
    "No published number for this row is recorded here, so there is nothing to compare with."
)
_NO_SETTINGS = (
    "The authors published no settings for this backbone, so those of the Sup-1K row are used; no "
    "standard deviation "
    "is recorded here."
)
# The names are those of conf/experiment/.
ROWS: dict[str, Row] = {
    "paper_cifar100": Row(
        "SMoPE on CIFAR-100, 10 tasks, Sup-1K",
        "CIFAR-100",
        50_000,
        10_000,
        {"final_average_accuracy": Mean(89.23, 0.12), "cumulative_average_accuracy": Mean(93.67)},
        {
            "final_average_accuracy": Mean(88.88),
            "cumulative_average_accuracy": Mean(92.78),
            "forgetting": Mean(4.30),
        },
        note="The independent repeat's FAA is itself 0.35 below the paper's, outside by the "
        "paper's own spread.",
    ),
    "paper_cub200": Row(
        "SMoPE on CUB-200, 10 tasks, Sup-21K",
        "CUB-200-2011 with its train_test_split.txt",
        5_994,
        5_794,
        {"final_average_accuracy": Mean(87.43, 0.39), "cumulative_average_accuracy": Mean(91.11)},
    ),
    "paper_imagenet_r_5": _imagenet_r(5, "Sup-1K", {}, _NO_NUMBER),
    "paper_imagenet_r_10": _imagenet_r(
        10,
        "Sup-1K",
        {"final_average_accuracy": Mean(79.32, 0.42), "cumulative_average_accuracy": Mean(84.39)},
    ),
    "paper_imagenet_r_20": _imagenet_r(20, "Sup-1K", {}, _NO_NUMBER),
    "paper_imagenet_r_10_ibot": _imagenet_r(
        10, "iBOT", {"final_average_accuracy": Mean(72.17)}, _NO_SETTINGS
    ),
    "paper_imagenet_r_10_dino": _imagenet_r(
        10, "DINO", {"final_average_accuracy": Mean(68.61)}, _NO_SETTINGS
    ),
}


@dataclass(frozen=True)
class Comparison:
    """One score of ours beside a reported one. allowed: None where nothing is known of the spread,
    or none is due.
    """

    score: str
    source: str
    reported: Mean
    ours: Mean
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


def allowed_difference(ours: Mean, reported: Mean, spreads: Sequence[Mean]) -> float | None:
    """2 s sqrt(1/n + 1/m), s pooled from `spreads`: s² = Σ seeds·std² / Σ (seeds - 1) of those with
    a known std.

    The two-sample rule of equal spreads at two standard errors. With the paper's std and 1 to 5
    seeds of ours s has 4 to 8 degrees of freedom, so that a faithful repeat is inside in 88 to 92
    of 100 cases. None where no spread is known: a single seed of ours against a number printed
    without one.
    """
    known = [(item.seeds, item.std) for item in spreads if item.std is not None]
    freedom = sum(seeds - 1 for seeds, _ in known)
    if freedom < 1:
        return None
    pooled = math.sqrt(sum(seeds * std**2 for seeds, std in known) / freedom)
    return 2 * pooled * math.sqrt(1 / ours.seeds + 1 / reported.seeds)


def means(records: Sequence[Mapping[str, Any]]) -> dict[str, Mean]:
    """Our scores: means over finished runs, one run.json a seed."""
    values = {score: [100 * record[score] for record in records] for score in SCORES}
    return {
        score: Mean(fmean(numbers), pstdev(numbers), len(numbers))
        for score, numbers in values.items()
    }


def compare(row: Row, ours: Mapping[str, Mean], judge: bool = True) -> list[Comparison]:
    """Our scores beside all that was reported for the row; `judge=False` only shows them."""
    found = []
    for source, reports in ((PAPER, row.paper), (REPEAT, row.repeat)):
        for score, reported in reports.items():
            spreads = [ours[score], row.paper[score]] if score in row.paper else [ours[score]]
            allowed = allowed_difference(ours[score], reported, spreads) if judge else None
            found.append(Comparison(score, source, reported, ours[score], allowed))
    return found


def changed_settings(row: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What a run's flat configuration sets otherwise than its row's: `trainer.epochs=1 (20)`, the
    row's in brackets.
    """
    changed = []
    for key, value in run.items():
        if immaterial(key, run):
            continue
        own = row.get(key, "not in the row")
        same = _weights(value) == _weights(own) if key == "backbone.weights" else value == own
        if not same:
            changed.append(f"{key}={shown(value)} ({shown(own)})")
    return changed


def _weights(value: str) -> str:
    """The same for a download and a file of trained weights: which they are is told by their hash."""
    return value if value in UNTRAINED else "trained"


def images(record: Mapping[str, Any]) -> dict[str, int]:
    """Training and test images of a run, all tasks together."""
    return {split: sum(task[split] for task in record["tasks"]) for split in ("train", "test")}


def changed_data(row: Row, numbers: Mapping[str, int], facts: Mapping[str, Any]) -> list[str]:
    """How images, their `numbers` in train and test and what their stream says of them, differ
    from the row's.
    """
    found = {**facts, "train images": numbers["train"], "test images": numbers["test"]}
    expected = {"train images": row.train_images, "test images": row.test_images, **row.facts}
    return [
        f"{key}={found.get(key)} ({value})"
        for key, value in expected.items()
        if found.get(key) != value
    ]


def verdict(row: Row, changed: Sequence[str], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """What the comparison with the paper comes to: a word or two, and a sentence."""
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
            f"{SCORES[item.score]} by {item.difference:+.2f} ({item.allowed:.2f} allowed)"
            for item in outside
        ]
        return "outside", f"differs from the paper in {', '.join(parts)}"
    return (
        "inside",
        f"agrees with the paper in {' and '.join(SCORES[item.score] for item in judged)}",
    )
