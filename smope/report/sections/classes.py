"""Sections on classes: which are confused, and all of them by name and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from smope.analysis.classes import class_accuracies
from smope.analysis.confusion import class_counts, most_confused
from smope.analysis.run import Run
from smope.console.markup import Grid
from smope.report.class_figures import confusion_map, pair_grid
from smope.report.figures import Figure, points
from smope.report.sections.base import (
    Folded,
    Section,
    Table,
    by_label,
    not_shown,
    plural,
    stream_title,
    with_snapshots,
    without_snapshots,
)

MAX_MAPS = 3
MAX_PAIRS = 50
MAX_OPEN_PAIRS = 12  # in the table that is open
MAX_COLUMNS = 6  # configurations with a column in the table of classes
MAX_OPEN_ROWS = 25  # a longer table of classes is folded
MAX_CLASSES = 2000
MAX_NAMES = 2000  # in the table of tasks, and of one task


def confused_classes(runs: Sequence[Run]) -> Section | None:
    """Which class is taken for which, after the last task."""
    groups = by_label(with_snapshots(runs))
    if not groups:
        return None
    shown = dict(list(groups.items())[:MAX_MAPS])
    tables, figures = [], []
    for number, (label, members) in enumerate(shown.items(), 1):
        counts, added = _counts(members)
        pairs = most_confused(counts, _names(members[0]), MAX_PAIRS)
        figures.append(_map(f"classes-{number}", label, added, counts, pairs))
        if len(pairs):
            most = pair_grid(pairs.head(MAX_OPEN_PAIRS // min(2, len(shown))))
            tables.append(Table(f"Most frequent confusions: {label}", most))
    lead = (
        "Which class is taken for which, after the last task: the most frequent pairs, and all "
        "classes as a map."
    )
    note = (
        "Seeds that learn the classes in the same order are added up; of others the first is shown."
    )
    note += not_shown(groups, MAX_MAPS, "maps of classes") + without_snapshots(runs)
    return Section("confusion", "Confused classes", lead, tables, figures, note=note.strip())


def _counts(runs: Sequence[Run]) -> tuple[Any, list[Run]]:
    """The confusion of the runs that have the classes of the first, added up; and these runs."""
    first = runs[0]
    equal = [
        run
        for run in runs
        if run.record["class_names"] == first.record["class_names"]
        and run.classes_of_tasks == first.classes_of_tasks
    ]
    tables = [class_counts(run) for run in equal]
    return sum(tables[1:], tables[0]), equal


def _names(run: Run) -> list[str]:
    return [str(name) for name in run.record["class_names"]]


def _map(
    name: str, label: str, runs: Sequence[Run], counts: Any, pairs: pandas.DataFrame
) -> Figure:
    first = runs[0]
    wrong = int(counts.sum() - counts.diagonal().sum())
    text = f"{label} takes {plural(wrong, 'test image')} for another class. "
    if len(pairs):
        worst = pairs.iloc[0]
        text += (
            f"The most frequent: {plural(int(worst['images']), 'image')} of {worst['class']} "
            f"({points(worst['share'])} percent) are taken for {worst['predicted']}."
        )
    starts = []
    if first.class_incremental:
        starts = [min(classes) for classes in first.classes_of_tasks[1 : first.tasks_done]]
    seeds = f", {plural(len(runs), 'seed')}" if len(runs) > 1 else ""
    return confusion_map(
        name,
        f"Confused classes: {label}{seeds}",
        counts,
        _names(first),
        starts=starts,
        text=text,
        grid=pair_grid(pairs),
    )


def classes(runs: Sequence[Run]) -> Section:
    """All classes by name: those of each task, and the accuracy of each."""
    first = runs[0]
    names = first.record["class_names"]
    tables = [Table("Tasks", _task_grid(first), words=True)]
    folded = []
    table = _class_table(runs)
    if len(table.grid) - 1 <= MAX_OPEN_ROWS:
        tables.append(table)
    else:
        listed = "All" if len(names) <= MAX_CLASSES else "The first"
        folded.append(
            Folded(f"{listed} {plural(len(table.grid) - 1, 'class', 'classes')}", [table])
        )
    lead = (
        f"{plural(len(names), 'class', 'classes')} in {plural(first.num_tasks, 'task')} of "
        f"{stream_title(first)}."
    )
    orders = {tuple(tuple(task) for task in _named_tasks(run)) for run in runs}
    note = ""
    if len(orders) > 1:
        note = f"The tasks are those of {first.name}; other runs have other classes in a task."
    if len(names) > MAX_CLASSES:
        note += f" The first {MAX_CLASSES:,} of {len(names):,} classes are listed."
    return Section("classes", "Tasks and classes", lead, tables, folded=folded, note=note.strip())


def _named_tasks(run: Run) -> list[list[str]]:
    names = run.record["class_names"]
    return [sorted(str(names[label]) for label in classes) for classes in run.classes_of_tasks]


def _task_grid(run: Run) -> Grid:
    """A row for each task: number, name, images, and the names of its classes, or some of them."""
    rows, most = [], max(MAX_NAMES // max(run.num_tasks, 1), 3)
    for number, (task, classes) in enumerate(
        zip(run.record["tasks"], run.classes_of_tasks, strict=True), 1
    ):
        names = ", ".join(str(run.record["class_names"][label]) for label in classes[:most])
        if len(classes) > most:
            names += f" and {len(classes) - most:,} more"
        title = str(task.get("name") or "")
        label = str(number) if title in ("", f"task {number}") else f"{number}: {title}"
        rows.append([label, str(len(classes)), str(task["train"]), str(task["test"]), names])
    return [["task", "classes", "training", run.record["evaluated_on"], "names"], *rows]


def _class_table(runs: Sequence[Run]) -> Table:
    """A row for each class: its tasks, test images, and accuracy in each configuration."""
    first = runs[0]
    names = [str(name) for name in first.record["class_names"][:MAX_CLASSES]]
    groups = dict(list(by_label(with_snapshots(runs)).items())[:MAX_COLUMNS])
    accuracies = {label: _accuracies(members) for label, members in groups.items()}
    images = _images(next(iter(groups.values()))) if groups else {}
    tasks: dict[int, list[str]] = {}
    for number, members in enumerate(first.classes_of_tasks, 1):
        for label in members:
            tasks.setdefault(label, []).append(str(number))
    rows = [
        [
            name,
            ", ".join(tasks.get(label, [])),
            str(images.get(name, "")),
            *(points(accuracies[column].get(name, float("nan"))) for column in groups),
        ]
        for label, name in enumerate(names)
    ]
    head = ["class", "task", f"{first.record['evaluated_on']} images"]
    head += ["accuracy, %"] if len(groups) == 1 else [f"{label}, %" for label in groups]
    return Table("Classes", [head, *rows])


def _last(runs: Sequence[Run]) -> pandas.DataFrame:
    """The accuracies of classes after the last task, a row for each run and class."""
    frames = []
    for run in runs:
        frame = class_accuracies(run)
        frames.append(frame[frame["after_task"] == frame["after_task"].max()])
    return pandas.concat(frames)


def _accuracies(runs: Sequence[Run]) -> Mapping[str, float]:
    means: Any = _last(runs).groupby("name")["accuracy"].mean()
    return {str(name): float(value) for name, value in means.items()}


def _images(runs: Sequence[Run]) -> Mapping[str, int]:
    frame = _last(runs[:1])
    return dict(zip(map(str, frame["name"]), map(int, frame["images"]), strict=True))
