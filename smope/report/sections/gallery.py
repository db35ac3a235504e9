"""The section with the surest mistakes as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from smope.analysis.mistakes import MAX_MISTAKES, Mistake, worst_mistakes
from smope.analysis.run import Run
from smope.report.figures import points
from smope.report.sections.base import (
    Folded,
    Picture,
    Section,
    Table,
    by_label,
    not_shown,
    with_snapshots,
    without_snapshots,
)

MAX_CONFIGURATIONS = 3
MAX_PICTURE_BYTES = 400_000  # of all pictures together


def gallery(runs: Sequence[Run]) -> Section | None:
    """The surest mistakes of the first run of each configuration; None if there are none."""
    groups = by_label(with_snapshots(runs))
    chosen = [members[0] for members in list(groups.values())[:MAX_CONFIGURATIONS]]
    if not chosen:
        return None
    each = MAX_MISTAKES // len(chosen)
    mistakes = {run.name: worst_mistakes(run, each) for run in chosen}
    if not any(mistakes.values()):
        return None
    alone = len(chosen) == 1
    pictures, folded, total = [], [], 0
    for name, shown in mistakes.items():
        for mistake in shown:
            total += len(mistake.jpeg)
            if mistake.jpeg and total <= MAX_PICTURE_BYTES:
                pictures.append(_picture(mistake, "" if alone else name))
        folded.append(Folded(f"Files of the mistakes of {name}", [_table(name, shown)]))
    lead = (
        f"The test images of which {' and '.join(mistakes)} {'was' if alone else 'were'} most "
        f"sure, and wrong, after the last task: either a hard image, or a wrong label."
    )
    note = not_shown(groups, MAX_CONFIGURATIONS, "mistakes") + without_snapshots(runs)
    if not pictures:
        note += (
            " This run kept no pictures: evaluate a new run with this version, "
            "trainer.record=seen. Files are named below where they were recorded."
        )
    return Section(
        "gallery", "Worst mistakes", lead, pictures=pictures, folded=folded, note=note.strip()
    )


def _picture(mistake: Mistake, run: str) -> Picture:
    probability = points(mistake.probability, 0)
    text = (
        f"Test image of class {mistake.label}, taken for {mistake.predicted} with {probability} "
        f"percent"
    )
    lines = [mistake.label, f"taken for {mistake.predicted}, {probability}\u00a0%"]
    lines += [_short(mistake)] if mistake.name else []
    return Picture(
        mistake.jpeg, text, [*lines, run] if run else lines, media="image/jpeg", pixels=128
    )


def _short(mistake: Mistake) -> str:
    """The name of the file without its folders, or the number that a stream without files gives."""
    name = mistake.name
    return f"test image {name}" if name.startswith("number ") else PurePath(name).name


def _table(name: str, mistakes: Sequence[Mistake]) -> Table:
    rows = [
        [
            mistake.label,
            mistake.predicted,
            points(mistake.probability),
            str(mistake.task),
            mistake.name or f"test image {mistake.index + 1} in the order of tasks",
        ]
        for mistake in mistakes
    ]
    head = ["class", "taken for", "probability, %", "task", "image"]
    return Table(f"Surest mistakes: {name}", [head, *rows], words=True)
