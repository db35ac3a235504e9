"""Runs and what their run.json says: scores, curves, costs, and what differs between their
configurations.
"""

from __future__ import annotations

import glob
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas

from smope.analysis.snapshots import Evidence
from smope.config.config import chosen_name, with_defaults
from smope.config.identity import flatten, immaterial
from smope.config.value_types import shown
from smope.errors import UserError
from smope.metrics import accuracy_matrix as metrics
from smope.storage.run_directory import FORMAT_VERSION, RunDirectory

SCORES = {
    "final_average_accuracy": "final average accuracy: the mean over all tasks after the last (Le "
    "et al. 2026)",
    "cumulative_average_accuracy": "cumulative average accuracy: the mean over t of the mean over "
    "tasks seen after t "
    "(Le et al. 2026)",
    "forgetting": "mean over old tasks of best earlier accuracy minus the last (Chaudhry et al. "
    "2018)",
    "backward_transfer": "mean over old tasks of last accuracy minus the one right after learning "
    "(Lopez-Paz and "
    "Ranzato 2017)",
    "learning_accuracy": "mean accuracy on each task right after learning it (Riemer et al. 2019)",
    "sample_weighted_accuracy": "accuracy over all test images together, after the last task",
}


REQUIRED = (
    "accuracy_matrix", "method", "seed", "config", "tasks", "status", "stream", "class_names", "evaluated_on",
    "trainable_parameters", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run directory. `label` names its configuration among those it was loaded with."""

    path: Path
    record: Mapping[str, Any]
    label: str = ""

    @property
    def method(self) -> str:
        return self.record["method"]

    @property
    def seed(self) -> int:
        return self.record["seed"]

    @property
    def stream(self) -> str:
        """What was learned in which order, as a hash: images, tasks, class order.

        Runs that pair have the same.
        """
        return self.record["stream"]["identity"]

    @property
    def name(self) -> str:
        """Label and seed: how tables and figures call this run."""
        return f"{self.label}, seed {self.seed}"

    @property
    def matrix(self) -> list[list[float]]:
        """A row a finished task, as long as there are tasks seen; fractions."""
        rows = [
            [value for value in row if value is not None] for row in self.record["accuracy_matrix"]
        ]
        return [row for row in rows if row]

    @property
    def tasks_done(self) -> int:
        return len(self.matrix)

    @property
    def num_tasks(self) -> int:
        return len(self.record["tasks"])

    @property
    def finished(self) -> bool:
        return self.record["status"] == "finished"

    @property
    def classes_of_tasks(self) -> list[list[int]]:
        """The labels of each task's training images."""
        return [task["classes"] for task in self.record["tasks"]]

    @property
    def class_incremental(self) -> bool:
        """Whether every class belongs to one task alone."""
        return (
            max(Counter(label for classes in self.classes_of_tasks for label in classes).values())
            == 1
        )

    @cached_property
    def evidence(self) -> Evidence:
        """What evaluation kept after the tasks that are done."""
        return Evidence(self.path, self.tasks_done)

    @property
    def has_evidence(self) -> bool:
        """Whether evaluation kept something after every task that is done."""
        return self.tasks_done > 0 and set(self.evidence.recorded) >= set(
            range(1, self.tasks_done + 1)
        )


def load_runs(*patterns: str | Path) -> list[Run]:
    """Runs by glob pattern, as run directories or as folders with run directories anywhere below.

    Sorted by label and seed; those that have not finished a task are left out. UserError where none
    is found.
    """
    found: dict[Path, Run] = {}
    for pattern in map(str, patterns):
        paths = [Path(path) for path in sorted(glob.glob(str(Path(pattern).expanduser())))]
        records = [path for folder in paths for path in _records(folder)]
        if not records:
            what = "holds no run.json at any depth" if paths else "no such directory"
            raise UserError(
                f"RUN={pattern}: {what}; name run directories, runs/<name>/<time>, or a folder of "
                f"them"
            )
        found |= {path.parent.resolve(): _load(path.parent) for path in records}
    runs = [run for run in found.values() if run.tasks_done > 0]
    if not runs:
        raise UserError(
            f"RUN={', '.join(map(str, patterns))}: no task is finished yet; come back when one is"
        )
    labels = _labels(runs)
    labelled = [Run(run.path, run.record, label) for run, label in zip(runs, labels, strict=True)]
    return sorted(labelled, key=lambda run: (run.label, run.seed, str(run.path)))


def _records(folder: Path) -> list[Path]:
    own = folder / "run.json"
    return [own] if own.is_file() else sorted(folder.rglob("run.json"))


def _load(path: Path) -> Run:
    record = RunDirectory(path).read_record()
    missing = [key for key in REQUIRED if key not in record]
    if missing or record.get("format_version") != FORMAT_VERSION:
        what = (
            f"has no {missing[0]}"
            if missing
            else f"has format version {record.get('format_version')}"
        )
        raise UserError(f"{path}/run.json: {what}, so this smope cannot read it; leave the run out")
    return Run(path, record)


def _important(run: Run) -> dict[str, Any]:
    """What decides about numbers, completed with today's defaults. Images and weights are told by
    their hashes, not by where they lay, and of a search's trial how much of the stream it saw.
    """
    flat = flatten(with_defaults(run.record["config"]))
    found = {"stream.name": run.record["stream"]["name"], "stream.images": _images(run)}
    backbone, part = run.record.get("backbone", {}), run.record.get("part", {})
    if "sha256" in backbone:
        flat.pop("backbone.weights", None)
        found |= {"backbone.name": backbone["name"], "backbone.sha256": backbone["sha256"][:12]}
    found |= {f"part.{key}": part[key] for key in ("first_tasks", "ranked_on") if key in part}
    return {key: value for key, value in {**flat, **found}.items() if not immaterial(key, flat)}


def _images(run: Run) -> str:
    return str(run.record["stream"].get("content_hash", "not recorded"))[:12]


def _labels(runs: Sequence[Run]) -> list[str]:
    """The method's name, and in brackets what tells its tasks and images from those of others on
    the same stream, and its settings from those of the same method. What most of them have is not
    said: `differences` has it.
    """
    configs = [_important(run) for run in runs]
    streams = {config["stream.name"] for config in configs}
    labels = []
    distinct = {
        (run.method, shown(config)): config for run, config in zip(runs, configs, strict=True)
    }
    for run, config in zip(runs, configs, strict=True):
        # A stream's name stands for all that tells it from others; its settings tell it from its
        # like.
        same_stream = [
            other for other in distinct.values() if other["stream.name"] == config["stream.name"]
        ]
        same_method = [other for (method, _), other in distinct.items() if method == run.method]
        inner = ", ".join(
            f"{key.partition('.')[2]}={shown(value)}"
            for key, value in config.items()
            if "_target_" not in key and key != "stream.name"
            and not _usual(key, value, same_stream if key.startswith("stream.") else same_method)
        )  # fmt: skip
        on = f" on {config['stream.name']}" if len(streams) > 1 else ""
        labels.append(f"{run.method}{on}" + (f" ({inner})" if inner else ""))
    return labels


def _usual(key: str, value: Any, configs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether more than half of these different configurations have this value."""
    return 2 * sum(config.get(key) == value for config in configs) > len(configs)


def differences(runs: Sequence[Run]) -> pandas.DataFrame:
    """What was configured differently: a row a key, a column a label, text; empty where nothing
    was.

    Seeds, places, devices and trackers are left out. A key that a configuration does not have is
    empty there.
    """
    configs: dict[str, dict[str, Any]] = {}
    for run in runs:
        configs.setdefault(
            run.label, dict(map(_chosen, *zip(*_important(run).items(), strict=True)))
        )
    keys = list(dict.fromkeys(key for config in configs.values() for key in config))
    groups = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    # a group's choice before its keys
    keys.sort(key=lambda key: (groups.index(key.partition(".")[0]), "." in key))
    rows = {
        key: {
            label: shown(config[key]) if key in config else "" for label, config in configs.items()
        }
        for key in keys
    }
    kept = {key: row for key, row in rows.items() if len(set(row.values())) > 1}
    return pandas.DataFrame.from_dict(kept, orient="index", columns=list(configs)).rename_axis(
        "key"
    )


def _chosen(key: str, value: Any) -> tuple[str, Any]:
    """A group's choice by the name of its file, as it is chosen: method=smope, not
    method._target_=...
    """
    if not key.endswith("._target_"):
        return key, value
    return key.removesuffix("._target_"), chosen_name(str(value))


def accuracies(runs: Sequence[Run]) -> pandas.DataFrame:
    """Every measured accuracy: columns label, seed, after_task, task (from 1), accuracy
    (fraction).
    """
    rows = [
        (run.label, run.seed, after + 1, task + 1, value)
        for run in runs
        for after, row in enumerate(run.matrix)
        for task, value in enumerate(row)
    ]
    return pandas.DataFrame(rows, columns=["label", "seed", "after_task", "task", "accuracy"])


def accuracy_matrix(run: Run) -> pandas.DataFrame:
    """A square table of fractions: row t the evaluation after task t, column j task j; NaN where j
    > t.
    """
    names = range(1, run.tasks_done + 1)
    return pandas.DataFrame(
        [row + [math.nan] * (run.tasks_done - len(row)) for row in run.matrix],
        pandas.Index(names, name="after task"), pandas.Index(names, name="task"),
    )  # fmt: skip


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
    """For each task but the last: columns label, seed, task, learned (right after its own), best,
    final, forgetting.
    """
    rows = []
    for run in runs:
        for task, lost in enumerate(metrics.forgetting_per_task(run.matrix)):
            final = run.matrix[-1][task]
            rows.append(
                (run.label, run.seed, task + 1, run.matrix[task][task], lost + final, final, lost)
            )
    return pandas.DataFrame(
        rows, columns=["label", "seed", "task", "learned", "best", "final", "forgetting"]
    )


def scores(runs: Sequence[Run]) -> pandas.DataFrame:
    """A row a run: label, seed, tasks (finished), and the scores of SCORES over these, as
    fractions.
    """
    rows = []
    for run in runs:
        images = [task["test"] for task in run.record["tasks"]][: run.tasks_done]
        values = {
            name: getattr(metrics, name)(run.matrix)
            for name in SCORES
            if name != "sample_weighted_accuracy"
        } | {"sample_weighted_accuracy": metrics.sample_weighted_accuracy(run.matrix[-1], images)}
        rows.append({"label": run.label, "seed": run.seed, "tasks": run.tasks_done, **values})
    return pandas.DataFrame(rows, columns=["label", "seed", "tasks", *SCORES])


def comparable(runs: Sequence[Run]) -> list[Run]:
    """Of each label the runs that have finished the most tasks, one a seed (the last by path where
    there are several).

    What a mean over seeds or a pairing may be taken of: fewer tasks are an easier problem.
    """
    most: dict[str, int] = {}
    for run in runs:
        most[run.label] = max(most.get(run.label, 0), run.tasks_done)
    full = sorted(
        (run for run in runs if run.tasks_done == most[run.label]), key=lambda run: str(run.path)
    )
    chosen = {(run.label, run.seed): run.path for run in full}
    return [run for run in runs if chosen.get((run.label, run.seed)) == run.path]


def summarise(frame: pandas.DataFrame, by: str | list[str] = "label") -> pandas.DataFrame:
    """Mean and standard deviation over seeds (ddof 0, as the paper has it) of every numeric column,
    and how many.

    Columns are pairs (column, "mean" or "std"), ("runs", "") and ("left out", ""). Of a frame with
    a row a run, such as `scores`, only rows of the group's largest number of tasks count, the last
    of each seed; the others are left out.
    """
    sizes = frame.groupby(by, sort=False).size()
    if "tasks" in frame:
        kept: Any = frame[frame["tasks"] == frame.groupby(by)["tasks"].transform("max")]
        frame = kept.drop_duplicates(
            [*([by] if isinstance(by, str) else by), *({"seed"} & set(frame))], keep="last"
        )
    numeric = [
        column
        for column in frame.select_dtypes("number")
        if column not in ("seed", "tasks") and column != by
    ]
    groups = frame.groupby(by, sort=False)
    parts = {(column, "mean"): groups[column].mean() for column in numeric}
    parts |= {(column, "std"): groups[column].std(ddof=0) for column in numeric}
    counts = {("runs", ""): groups.size(), ("left out", ""): sizes - groups.size()}
    table: Any = pandas.DataFrame({**counts, **parts}).loc[sizes.index]
    return table[[*counts, *((column, kind) for column in numeric for kind in ("mean", "std"))]]


def costs(runs: Sequence[Run]) -> pandas.DataFrame:
    """A row a run: trained parameters, seconds by what they were spent on, training images a
    second, device.
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
    """metrics.csv: losses and learning rate, a row an epoch."""
    path = RunDirectory(run.path).metrics
    return pandas.read_csv(path) if path.is_file() else pandas.DataFrame()
