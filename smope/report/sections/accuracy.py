"""Sections that follow from accuracy matrices: scores, curves, matrices, forgetting, comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smope.analysis.runs import (
    SCORES,
    Run,
    accuracy_matrix,
    comparable,
    curves,
    forgetting_by_task,
    scores,
    summarise,
)
from smope.analysis.significance import compare_all
from smope.console.markup import Grid
from smope.report.figures import Figure, bars, heat_map, lines, points
from smope.report.sections.base import MAPS, Section, Table, by_label, not_shown, plural

HEADINGS = {
    "final_average_accuracy": "FAA",
    "cumulative_average_accuracy": "CAA",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "learning_accuracy": "learning accuracy",
    "sample_weighted_accuracy": "all images",
}


def score_grid(runs: Sequence[Run]) -> Grid:
    """A row a configuration: runs, finished tasks, and every score in percent, mean ± standard
    deviation (ddof 0).
    """
    frame = scores(runs)
    table: Any = summarise(frame)
    tasks: Any = frame.groupby("label")["tasks"].max()
    rows = []
    for label, row in table.iterrows():
        several = row[("runs", "")] > 1
        cells = [
            points(row[(name, "mean")], 2)
            + (f" ± {points(row[(name, 'std')], 2)}" if several else "")
            for name in SCORES
        ]
        rows.append([str(label), str(int(row[("runs", "")])), str(tasks[label]), *cells])
    return [["method", "runs", "tasks", *(HEADINGS[name] for name in SCORES)], *rows]


def overview(runs: Sequence[Run]) -> Section:
    groups, counted, streams = by_label(runs), comparable(runs), _streams(runs)
    best: Any = scores(counted).groupby("label")["final_average_accuracy"].mean()
    several = any(len(group) > 1 for group in groups.values())
    who = f"{len(runs)} runs of {plural(len(groups), 'configuration')}"
    if len(runs) == 1:
        who = f"One run, {runs[0].name},"
    lead = f"{who} on {'; '.join(streams)}. "
    if len(streams) > 1:
        lead += "Scores on different streams do not compare."
    elif len({run.tasks_done for run in counted}) > 1:
        lead += "Scores over different numbers of finished tasks do not compare."
    elif len(groups) > 1:
        lead += f"The highest final average accuracy is that of {best.idxmax()}, {points(best.max())} %."
    else:
        lead += f"The final average accuracy is {points(best.max())} %."
    unfinished = [run.name for run in counted if not run.finished]
    note = "Percent. Tasks count equally, except under all images."
    note += " Mean ± standard deviation (ddof 0) over seeds." if several else ""
    if unfinished:
        note += f" Not finished, counted as far as they are: {', '.join(unfinished)}."
    note += left_out(len(runs) - len(counted))
    return Section(
        "scores", "Scores", lead, [Table("Scores, percent", score_grid(runs))], note=note
    )


def _streams(runs: Sequence[Run]) -> list[str]:
    """What was learned, a sentence each; other images of the same name and size are another
    stream.
    """
    found = {}
    for run in runs:
        record = run.record
        text = (
            f"{record['stream']['name']}: {len(record['class_names'])} classes in "
            f"{plural(run.num_tasks, 'task')}, "
            f"evaluated on {record['evaluated_on']} images"
        )
        found[text, record["stream"]["content_hash"]] = text
    return list(found.values())


def left_out(number: int) -> str:
    """A sentence on the runs that no mean is taken of; none where there are none."""
    reason = "with fewer tasks than others of its configuration, or a repeat of a seed"
    return f" Left out: {plural(number, 'run')}, each {reason}." if number else ""


def accuracy(runs: Sequence[Run]) -> Section:
    counted = comparable(runs)
    frame = curves(counted)
    last: Any = frame[frame["after_task"] == frame.groupby("label")["after_task"].transform("max")]
    last = last.groupby("label")["average_accuracy"].mean()
    ends = ", ".join(f"{label} at {points(value)} %" for label, value in last.items())
    curve = lines(
        "accuracy-curves", "Average accuracy after each task", frame, ("label", "after_task", "average_accuracy"),
        labels=("after task", "mean accuracy over tasks seen, %"), text=f"After the last task: "
                                                                        f"{ends}.",
        caption=_band(runs, "Mean over the tasks seen so far."),
    )  # fmt: skip
    groups = by_label(counted)
    maps = [
        _matrix(label, group, number)
        for number, (label, group) in enumerate(list(groups.items())[:MAPS], 1)
    ]
    lead = "Each row of a matrix is an evaluation; down a column one sees a task being learned and forgotten."
    return Section(
        "accuracy",
        "Accuracy",
        lead,
        figures=[curve, *maps],
        note=not_shown(groups, MAPS, "matrices"),
    )


def _mean(runs: Sequence[Run]) -> str:
    return "Mean over seeds. " if any(len(group) > 1 for group in by_label(runs).values()) else ""


def _band(runs: Sequence[Run], text: str) -> str:
    several = any(len(group) > 1 for group in by_label(runs).values())
    return text + (" Bands: one standard deviation over seeds." if several else "")


def _matrix(label: str, runs: Sequence[Run], number: int) -> Figure:
    tables = [accuracy_matrix(run) for run in runs]
    frame = sum(tables[1:], tables[0]) / len(tables)
    last = ", ".join(points(value) for value in frame.iloc[-1])
    over = f", mean of {plural(len(runs), 'run')}" if len(runs) > 1 else ""
    return heat_map(
        f"matrix-{number}", f"Accuracy matrix: {label}{over}", frame,
        text=f"Accuracy of {label} on each task after each task. After the last: {last} percent "
             f"on tasks 1 to "
        f"{len(frame)}.",
    )  # fmt: skip


def forgetting(runs: Sequence[Run]) -> Section | None:
    frame = forgetting_by_task(comparable(runs))
    if frame.empty:
        return None
    table: Any = frame.pivot_table(
        index="task", columns="label", values="forgetting", sort=False
    ).sort_index()
    worst = {label: table[label].idxmax() for label in table}
    text = "; ".join(f"{label} lost most on task {task}, {points(table.loc[task, label])} points" for label, task in
                     worst.items())  # fmt: skip
    figure = bars(
        "forgetting-tasks", "Forgetting of each task", table, labels=("task", "best earlier minus "
                                                                              "final, points"),
        text=text + ".", caption=_mean(runs) + "Negative: the task has become better since.",
    )  # fmt: skip
    lead = "Best accuracy before the last task minus the accuracy after it. The last task has had no time to be forgotten."
    return Section("forgetting", "Forgetting", lead, figures=[figure])


def comparison(runs: Sequence[Run]) -> Section | None:
    frame, missing = compare_all(runs), len(runs) - len(comparable(runs))
    if frame.empty:
        return None
    head = ["first", "second", "pairs", "difference", "95 % interval", "p", "smallest p", "p, Holm", "effect size d",
            "wins"]  # fmt: skip
    rows = [
        [row["first"], row["second"], str(row["pairs"]), _signed(row["difference"]),
         "" if math.isnan(row["low"]) else f"{_signed(row['low'])} to {_signed(row['high'])}", f"{row['p']:.3g}",
         f"{row['smallest_p']:.3g}", f"{row['p_holm']:.3g}",
         "" if math.isnan(row["effect_size"]) else f"{row['effect_size']:.1f}", f"{100 * row['wins']:.0f} %"]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    pairs, smallest = max(map(int, frame["pairs"])), min(map(float, frame["smallest_p"]))
    lead = (
        "Final average accuracies, paired by seed. The p-value comes from exchanging the two runs "
        "of a pair at random, "
        f"and with {plural(pairs, 'pair')} it cannot be below {smallest:.3g}, however large the "
        f"difference."
    )
    note = (
        "Difference in points, with a bootstrap interval over pairs (too narrow where there are "
        "few pairs); p, Holm: "
        "corrected for the number of rows; d: mean over standard deviation of the differences; "
        "wins: share of seeds in "
        "which the first is better."
    ) + left_out(missing)
    table = Table("Every two methods that share seeds on one stream", [head, *rows])
    return Section("comparison", "Comparison", lead, [table], note=note)


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"
