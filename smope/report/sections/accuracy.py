"""Sections that follow from accuracy matrices: scores, curves, matrices, forgetting, comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from smope.analysis.frames import (
    accuracy_matrix,
    curves,
    forgetting_by_task,
    scores,
    summarise,
)
from smope.analysis.labels import comparable
from smope.analysis.run import Run
from smope.analysis.significance import compare_all
from smope.console.markup import Grid
from smope.console.tables import shortened
from smope.metrics.scores import SCORES
from smope.report.figures import Figure, bars, heat_map, lines, points
from smope.report.sections.base import (
    MAX_MAPS,
    Section,
    Table,
    by_label,
    not_counted,
    not_shown,
    plural,
)

MAX_SPOKEN = 20  # accuracies in the text of a map


def score_grid(runs: Sequence[Run]) -> Grid:
    """A row for each configuration: number of runs, finished tasks, every score.

    Scores are in percent, mean ± standard deviation (ddof 0) over seeds.
    """
    frame = scores(runs)
    table: Any = summarise(frame)
    tasks: Any = frame.groupby("label")["tasks"].max()
    rows = []
    for label, row in table.iterrows():
        cells = []
        for name in SCORES:
            cell = points(row[(name, "mean")], 2)
            if row[("runs", "")] > 1:
                cell += f" ± {points(row[(name, 'std')], 2)}"
            cells.append(cell)
        rows.append([str(label), str(int(row[("runs", "")])), str(tasks[label]), *cells])
    return [["method", "runs", "tasks", *(score.short for score in SCORES.values())], *rows]


def overview(runs: Sequence[Run]) -> Section:
    """What was run, the best score, and the table of scores."""
    groups, counted, streams = by_label(runs), comparable(runs), _stream_sentences(runs)
    subject = f"{len(runs)} runs of {plural(len(groups), 'configuration')}"
    if len(runs) == 1:
        subject = f"One run, {runs[0].name},"
    lead = f"{subject} on {'; '.join(streams)}. {_best_score(counted, len(streams))}"
    note = "Percent. Tasks count equally, except under AIA and all images, where images do."
    if any(len(members) > 1 for members in groups.values()):
        note += " Mean ± standard deviation (ddof 0) over seeds."
    unfinished = [run.name for run in counted if not run.finished]
    if unfinished:
        note += f" Not finished, counted as far as they are: {', '.join(unfinished)}."
    note += not_counted(runs)
    table = Table("Scores, percent", score_grid(runs))
    return Section("scores", "Scores", lead, [table], note=note)


def _best_score(runs: Sequence[Run], streams: int) -> str:
    """The best final average accuracy, or why none is named."""
    if streams > 1:
        return "Scores on different streams do not compare."
    if len({run.tasks_done for run in runs}) > 1:
        return "Scores over different numbers of finished tasks do not compare."
    means: Any = scores(runs).groupby("label")["final_average_accuracy"].mean()
    best = points(means.max())
    if len(means) > 1:
        return f"The highest final average accuracy is that of {means.idxmax()}, {best} %."
    return f"The final average accuracy is {best} %."


def _stream_sentences(runs: Sequence[Run]) -> list[str]:
    """What was learned, a phrase for each stream; other images of the same name are another one."""
    phrases = {}
    for run in runs:
        record = run.record
        phrase = (
            f"{record['stream']['name']}: {len(record['class_names'])} classes in "
            f"{plural(run.num_tasks, 'task')}, evaluated on {record['evaluated_on']} images"
        )
        phrases[phrase, record["stream"]["content_hash"]] = phrase
    return list(phrases.values())


def accuracy(runs: Sequence[Run]) -> Section:
    """Accuracy curves and accuracy matrices."""
    counted = comparable(runs)
    frame = curves(counted)
    ends = ", ".join(f"{label} at {points(value)} %" for label, value in _last_values(frame))
    columns = ("label", "after_task", "average_accuracy")
    curve = lines(
        "accuracy-curves",
        "Average accuracy after each task",
        frame,
        columns,
        labels=("after task", "mean accuracy over tasks seen, %"),
        text=f"After the last task: {ends}.",
        caption=_with_band_note(runs, "Mean over the tasks seen so far."),
    )
    groups = by_label(counted)
    maps = [
        _matrix_figure(label, members, number)
        for number, (label, members) in enumerate(list(groups.items())[:MAX_MAPS], 1)
    ]
    lead = (
        "Each row of a matrix is an evaluation; down a column one sees a task being learned and "
        "forgotten."
    )
    note = not_shown(groups, MAX_MAPS, "matrices")
    return Section("accuracy", "Accuracy", lead, figures=[curve, *maps], note=note)


def _last_values(frame: Any) -> Any:
    """Each label with its average accuracy after its own last task, mean over seeds."""
    last = frame[frame["after_task"] == frame.groupby("label")["after_task"].transform("max")]
    return last.groupby("label")["average_accuracy"].mean().items()


def _has_repeated_labels(runs: Sequence[Run]) -> bool:
    return any(len(members) > 1 for members in by_label(runs).values())


def _with_band_note(runs: Sequence[Run], text: str) -> str:
    return text + (
        " Bands: one standard deviation over seeds." if _has_repeated_labels(runs) else ""
    )


def _matrix_figure(label: str, runs: Sequence[Run], number: int) -> Figure:
    tables = [accuracy_matrix(run) for run in runs]
    frame = sum(tables[1:], tables[0]) / len(tables)
    last = ", ".join(
        "..." if task is None else points(frame.iloc[-1, task])
        for task in shortened(len(frame), MAX_SPOKEN)
    )
    over = f", mean of {plural(len(runs), 'run')}" if len(runs) > 1 else ""
    return heat_map(
        f"matrix-{number}",
        f"Accuracy matrix: {label}{over}",
        frame,
        text=f"Accuracy of {label} on each task after each task. After the last: {last} percent "
        f"on tasks 1 to {len(frame)}.",
    )


def forgetting(runs: Sequence[Run]) -> Section | None:
    """Forgetting of each task; None if there is one task alone."""
    frame = forgetting_by_task(comparable(runs))
    if frame.empty:
        return None
    table: Any = frame.pivot_table(
        index="task", columns="label", values="forgetting", sort=False
    ).sort_index()
    worst = {label: table[label].idxmax() for label in table}
    text = "; ".join(
        f"{label} lost most on task {task}, {points(table.loc[task, label])} points"
        for label, task in worst.items()
    )
    caption = "Negative: the task has become better since."
    if _has_repeated_labels(runs):
        caption = f"Mean over seeds. {caption}"
    figure = bars(
        "forgetting-tasks",
        "Forgetting of each task",
        table,
        labels=("task", "best earlier minus final, points"),
        text=f"{text}.",
        caption=caption,
    )
    lead = (
        "Best accuracy before the last task minus the accuracy after it. The last task has had no "
        "time to be forgotten."
    )
    return Section("forgetting", "Forgetting", lead, figures=[figure])


def comparison(runs: Sequence[Run]) -> Section | None:
    """Tests between every two methods; None if no two share a seed."""
    frame = compare_all(runs)
    if frame.empty:
        return None
    head = [
        "first", "second", "pairs", "difference", "95 % interval", "p", "smallest p", "p, Holm",
        "effect size d", "wins",
    ]  # fmt: skip
    rows = [_comparison_cells(row) for row in frame.to_dict("records")]
    pairs, smallest = max(map(int, frame["pairs"])), min(map(float, frame["smallest_p"]))
    lead = (
        f"Final average accuracies, paired by seed. The p-value comes from exchanging the two runs "
        f"of a pair at random, and with {plural(pairs, 'pair')} it cannot be below {smallest:.3g}, "
        f"however large the difference."
    )
    note = (
        "Difference in points, with a bootstrap interval over pairs (too narrow where there are "
        "few pairs); p, Holm: corrected for the number of rows; d: mean over standard deviation of "
        "the differences; wins: share of seeds in which the first is better."
    ) + not_counted(runs)
    table = Table("Every two methods that share seeds on one stream", [head, *rows])
    return Section("comparison", "Comparison", lead, [table], note=note)


def _comparison_cells(row: Mapping[Any, Any]) -> list[str]:
    interval = ""
    if not math.isnan(row["low"]):
        interval = f"{_signed(row['low'])} to {_signed(row['high'])}"
    return [
        row["first"],
        row["second"],
        str(row["pairs"]),
        _signed(row["difference"]),
        interval,
        f"{row['p']:.3g}",
        f"{row['smallest_p']:.3g}",
        f"{row['p_holm']:.3g}",
        "" if math.isnan(row["effect_size"]) else f"{row['effect_size']:.1f}",
        f"{100 * row['wins']:.0f} %",
    ]


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"
