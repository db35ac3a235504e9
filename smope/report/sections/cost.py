"""Sections that follow from run.json alone: costs, configurations, definitions of scores."""

from __future__ import annotations

from collections.abc import Sequence

from smope.analysis.frames import costs, differences
from smope.analysis.run import Run
from smope.metrics.scores import SCORES
from smope.report.sections.base import Section, Table, plural


def cost(runs: Sequence[Run]) -> Section:
    """What was trained and how long it took."""
    head = [
        "run", "prompt parameters", "classifier parameters", "training, s", "alignment, s",
        "evaluation, s", "images a second", "device",
    ]  # fmt: skip
    rows = []
    for row in costs(runs).to_dict("records"):
        rate = row["images_per_second"]
        rows.append(
            [
                f"{row['label']}, seed {row['seed']}",
                f"{row['prompt_parameters']:,}",
                f"{row['classifier_parameters']:,}",
                *(f"{row[f'seconds_{what}']:.1f}" for what in ("train", "align", "eval")),
                f"{rate:.0f}" if rate else "",
                f"{row['device']}, {plural(row['threads'], 'thread')}",
            ]
        )
    lead = (
        "What was trained and how long it took; images a second are those of training steps. "
        "Times of different machines, or of a busy one, do not compare."
    )
    return Section("cost", "Cost", lead, [Table("Trained parameters and seconds", [head, *rows])])


def configuration(runs: Sequence[Run]) -> Section | None:
    """The keys in which configurations differ."""
    frame = differences(runs)
    if frame.empty:
        return None
    head = ["key", *map(str, frame.columns)]
    rows = [
        [str(key), *map(str, row)] for key, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    lead = (
        "Keys in which the configurations differ; seeds, paths and devices are left out. An empty "
        "cell: the configuration has no such key."
    )
    table = Table("Configuration", [head, *rows])
    return Section("configuration", "What was configured differently", lead, [table])


def definitions(runs: Sequence[Run]) -> Section:
    """What each score means; the same for all runs."""
    pairs = [(score.short, score.definition) for score in SCORES.values()]
    lead = (
        "A[t, j] is the accuracy on task j after learning task t, with all classes seen so far "
        "competing."
    )
    return Section("definitions", "Definitions", lead, definitions=pairs)
