"""Which run directories there are, and reading them. Imports neither torch nor pandas."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smope.analysis.labels import label_runs
from smope.analysis.run import Run
from smope.errors import UserError
from smope.storage.commands import resume_command
from smope.storage.run_directory import RUN_FORMAT_VERSION, RunDirectory, tasks_done
from smope.storage.run_search import LATEST, finished_run, run_dirs_below
from smope.storage.sweep_manifest import LOGS

_log = logging.getLogger(__name__)
# What the analysis of a run reads, beyond the scores.
REQUIRED_KEYS = (
    "accuracy_matrix", "method", "seed", "config", "tasks", "status", "stream", "class_names",
    "evaluated_on", "trainable_parameters", "seconds",
)  # fmt: skip


def find_runs(arguments: Iterable[str]) -> list[Path]:
    """The run directories that the arguments name, each once.

    An argument is a run directory, its run.json, a folder with run directories at any depth, a
    glob of these, or `latest` for the latest finished run below runs/. UserError if an argument
    leads to none.
    """
    run_dirs: dict[Path, Path] = {}
    for argument in arguments:
        pattern = os.path.expanduser(argument)
        # A path with [ or * in its name is no glob if it exists.
        exists = os.path.exists(pattern)
        matches = [pattern] if exists else sorted(glob.glob(pattern, recursive=True))
        paths = [path for match in matches for path in _run_dirs_at(Path(match))]
        if argument == LATEST and not exists:
            paths = [finished_run(Path(LATEST), _log.info)]
        if not paths:
            reason = (
                "no run directory in it" if matches else "no such directory, and no match as a glob"
            )
            raise UserError(
                f"RUN={argument}: {reason}; run directories are named runs/<name>/<time>"
            )
        for path in paths:
            run_dirs.setdefault(path.resolve(), path)
    return list(run_dirs.values())


def _run_dirs_at(path: Path) -> list[Path]:
    if path.name == "run.json" and path.is_file():
        return [path.parent]
    return run_dirs_below(path)


def load_runs(*patterns: str | Path) -> list[Run]:
    """Load runs for analysis, labelled and sorted by label and seed.

    Runs that have not finished a task are left out. Repeats of a seed count once, see labels.py.

    Args:
        patterns: Run directories, folders with run directories at any depth, globs, or `latest`.

    Raises:
        UserError: If nothing is found, no task is finished yet, a run.json cannot be read, or two
            runs of one configuration and seed have different accuracies.
    """
    runs = [_load(path) for path in find_runs(map(str, patterns))]
    started = [run for run in runs if run.tasks_done > 0]
    if not started:
        raise UserError(
            f"RUN={', '.join(map(str, patterns))}: no task is finished yet; come back when one is"
        )
    return sorted(label_runs(started), key=lambda run: (run.label, run.seed, str(run.path)))


def _load(path: Path) -> Run:
    record = RunDirectory(path).read_record()
    missing = [key for key in REQUIRED_KEYS if key not in record]
    problem = None
    if record and missing:
        problem = f"has no {missing[0]}"
    elif record and record.get("format_version") != RUN_FORMAT_VERSION:
        problem = f"has format version {record.get('format_version')}"
    if problem:
        raise UserError(
            f"{path}/run.json: {problem}, so this smope cannot read it; leave the run out"
        )
    return Run(path, record)


def read_finished(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs, labelled, and for each other run a line that says why it is left out.

    Less is required than by `load_runs`: what a run of an older version did not record is missing
    in tables. UserError if two runs of one configuration and seed have different accuracies.
    """
    runs, left_out = [], []
    for path in paths:
        try:
            record = RunDirectory(path).read_record()
        except UserError as error:
            left_out.append(str(error))
            continue
        if record.get("status") != "finished":
            left_out.append(_unfinished_line(path, record))
        elif "config" not in record or "seed" not in record:
            left_out.append(
                f"{path}: its run.json has no config or seed, so its configuration is not known"
            )
        else:
            runs.append(Run(path, record))
    return label_runs(runs), left_out


def _unfinished_line(path: Path, record: Mapping[str, Any]) -> str:
    log = path.parent / LOGS / f"{path.name}.log"  # of a failed job of a sweep
    log_hint = f"; log: {log}" if log.is_file() else ""
    # A search resumes its own trials, and those that it ended early are complete.
    resume_hint = "" if "part" in record else f"; continue with: {resume_command(path)}"
    return f"{path}: {_state(record)}{log_hint}{resume_hint}"


def _state(record: Mapping[str, Any]) -> str:
    if not record:
        return "has no run.json yet"
    status = record.get("status", "unfinished")
    if status == "running":
        status = "running, or killed,"
    tasks = len(record.get("accuracy_matrix", []))
    return f"{status} after {tasks_done(record)} of {tasks} tasks"
