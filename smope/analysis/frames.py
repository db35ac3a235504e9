"""pandas DataFrames of what run.json says: accuracies, scores, curves, costs, configurations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas

from smope.analysis.labels import as_written
from smope.analysis.run import Run
from smope.metrics import accuracy_matrix as metrics
from smope.metrics.scores import SCORES
from smope.storage.run_directory import RunDirectory


def differences(runs: Sequence[Run]) -> pandas.DataFrame:
    """What is configured differently: a row for each key, a column for each label, text.

    Keys that do not change numbers are left out: seeds, paths, devices, trackers. A cell is empty
    if the configuration has no such key. Without differences the frame is empty.
    """
    configs: dict[str, dict[str, str]] = {}
    for run in runs:
        settings = {**run.method_settings, **run.benchmark}
        configs.setdefault(
            run.label, dict(as_written(key, value) for key, value in settings.items())
        )
    keys = list(dict.fromkeys(key for config in configs.values() for key in config))
    groups = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    # a group's choice comes before its keys
    keys.sort(key=lambda key: (groups.index(key.partition(".")[0]), "." in key))
    rows = {key: {label: config.get(key, "") for label, config in configs.items()} for key in keys}
    differing = {key: row for key, row in rows.items() if len(set(row.values())) > 1}
    frame = pandas.DataFrame.from_dict(differing, orient="index", columns=list(configs))
    return frame.rename_axis("key")


def accuracies(runs: Sequence[Run]) -> pandas.DataFrame:
    """Every measured accuracy: columns label, seed, after_task, task, accuracy.

    Tasks are counted from 1, accuracies are fractions.
    """
    rows = [
        (run.label, run.seed, after + 1, task + 1, value)
        for run in runs
        for after, row in enumerate(run.matrix)
        for task, value in enumerate(row)
    ]
    return pandas.DataFrame(rows, columns=["label", "seed", "after_task", "task", "accuracy"])


def accuracy_matrix(run: Run) -> pandas.DataFrame:
    """The accuracy matrix of a run, see `matrix_frame`."""
    return matrix_frame(run.matrix)


def matrix_frame(matrix: Sequence[Sequence[float]]) -> pandas.DataFrame:
    """A square table of fractions: row t is the evaluation after task t, column j is task j.

    Cells above the diagonal are NaN.
    """
    names = range(1, len(matrix) + 1)
    rows = [[*row, *[math.nan] * (len(matrix) - len(row))] for row in matrix]
    return pandas.DataFrame(
        rows, pandas.Index(names, name="after task"), pandas.Index(names, name="task")
    )


def curves(runs: Sequence[Run]) -> pandas.DataFrame:
    """A_t, the mean accuracy over the tasks seen: columns label, seed, after_task,
    average_accuracy.
    """
    rows = [
        (run.label, run.seed, row + 1, metrics.average_accuracy(run.matrix, row))
        for run in runs
        for row in range(run.tasks_done)
    ]
    return pandas.DataFrame(rows, columns=["label", "seed", "after_task", "average_accuracy"])


def forgetting_by_task(runs: Sequence[Run]) -> pandas.DataFrame:
    """For each task but the last: columns label, seed, task, learned, best, final, forgetting.

    learned is the accuracy right after the task itself, best the highest before the last task.
    """
    rows = []
    for run in runs:
        for task, lost in enumerate(metrics.forgetting_per_task(run.matrix)):
            final = run.matrix[-1][task]
            learned = run.matrix[task][task]
            rows.append((run.label, run.seed, task + 1, learned, lost + final, final, lost))
    columns = ["label", "seed", "task", "learned", "best", "final", "forgetting"]
    return pandas.DataFrame(rows, columns=columns)


def scores(runs: Sequence[Run]) -> pandas.DataFrame:
    """A row for each run: label, seed, finished tasks, and every score of `metrics.scores.SCORES`.

    Scores are fractions over the finished tasks.
    """
    rows = [
        {"label": run.label, "seed": run.seed, "tasks": run.tasks_done, **run.scores}
        for run in runs
    ]
    return pandas.DataFrame(rows, columns=["label", "seed", "tasks", *SCORES])


def summarise(frame: pandas.DataFrame, by: str | list[str] = "label") -> pandas.DataFrame:
    """Mean and standard deviation of every numeric column over seeds.

    Args:
        frame: A row for each run, such as `scores` gives. If it has a column `tasks`, only the
            rows of a group with the most tasks count, and the others are left out.
        by: The columns whose values make a group.

    Returns:
        A row for each group. Columns are pairs: (column, "mean"), (column, "std") with ddof 0 as
        in the paper, ("runs", "") and ("left out", "").
    """
    sizes = frame.groupby(by, sort=False).size()
    if "tasks" in frame:
        counted: Any = frame[frame["tasks"] == frame.groupby(by)["tasks"].transform("max")]
        frame = counted
    numeric = [
        column
        for column in frame.select_dtypes("number")
        if column not in ("seed", "tasks") and column != by
    ]
    groups = frame.groupby(by, sort=False)
    counts = {("runs", ""): groups.size(), ("left out", ""): sizes - groups.size()}
    statistics = {}
    for column in numeric:
        statistics[column, "mean"] = groups[column].mean()
        statistics[column, "std"] = groups[column].std(ddof=0)
    table: Any = pandas.DataFrame({**counts, **statistics})
    return table.loc[sizes.index]


def costs(runs: Sequence[Run]) -> pandas.DataFrame:
    """A row for each run: trained parameters, seconds by what they were spent on, training images
    per second, device, threads.
    """
    rows = []
    for run in runs:
        parameters, seconds = run.record["trainable_parameters"], run.record["seconds"]
        rows.append(
            {
                "label": run.label,
                "seed": run.seed,
                "prompt_parameters": parameters["prompt"],
                "classifier_parameters": parameters["classifier"],
                **{f"seconds_{what}": seconds[what] for what in ("train", "align", "eval")},
                "images_per_second": run.record.get("images_per_second"),
                "device": run.record.get("device", ""),
                "threads": run.record.get("threads"),
            }
        )
    return pandas.DataFrame(rows)


def epochs(run: Run) -> pandas.DataFrame:
    """metrics.csv of a run: a row for each epoch, with losses and learning rate."""
    path = RunDirectory(run.path).metrics
    return pandas.read_csv(path) if path.is_file() else pandas.DataFrame()
