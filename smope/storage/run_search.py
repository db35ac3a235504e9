"""Which run a command means: `latest`, or a folder with runs at any depth.

A run directory or a file is meant as it is. Of a folder it is the latest run beneath, and of the
word `latest` that of runs/, unless something of this name exists. The latest run is the one whose
run.json was written last. Trials of a search are no candidates, since they keep no model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smope.errors import UserError
from smope.storage.run_directory import RUNS_FOLDER, RunDirectory

LATEST = "latest"
MAX_LISTED_RUNS = 5  # in an error message


def run_dirs_below(path: Path) -> list[Path]:
    """The run directories at or below a path, in the order of their names."""
    run_dirs = []
    for folder, subfolders, files in os.walk(path, onerror=_refuse_unreadable):
        subfolders.sort()
        if _is_run_dir(subfolders, files):
            run_dirs.append(Path(folder))
            subfolders.clear()  # a run directory contains no other
    return run_dirs


def _refuse_unreadable(error: OSError) -> None:
    if isinstance(error, NotADirectoryError | FileNotFoundError):
        return  # a file, or removed meanwhile
    raise UserError(
        f"folder {error.filename} cannot be read ({error.strerror}), and may hold runs; change its "
        "permissions or name the runs themselves"
    ) from error


def _is_run_dir(subfolders: Sequence[str], files: Sequence[str]) -> bool:
    """Whether a folder with this content is a run directory, maybe one that has just begun."""
    begun = "config.yaml" in files and ("train.log" in files or "model.safetensors" in files)
    return "run.json" in files or begun or "checkpoints" in subfolders


def finished_run(path: Path, report: Callable[[str], object], key: str = "RUN") -> Path:
    """The run that a command reads: the latest finished one if `path` is `latest` or a folder.

    Args:
        path: What the user wrote.
        report: Called with a line that names the run, unless `path` itself is the run.
        key: What errors call `path`.

    Returns:
        A run directory; `path` if it is a run directory or a file, or leads to no run.

    Raises:
        UserError: There are runs, but none that is finished.
    """
    return _latest(path, key, "finished", lambda run: run.get("status") == "finished", report)


def unfinished_run(path: Path, report: Callable[[str], object], key: str = "resume") -> Path:
    """The run that is to be continued: the latest unfinished one, which no process trains.

    Args:
        path: What the user wrote.
        report: Called with a line that names the run, unless `path` itself is the run.
        key: What errors call `path`.

    Returns:
        A run directory; `path` if it is a run directory or a file, or leads to no run.

    Raises:
        UserError: There are runs, but none that is unfinished.
    """
    return _latest(path, key, "unfinished", lambda run: run.get("status") != "finished", report)


def _latest(
    path: Path,
    key: str,
    wanted: str,
    fits: Callable[[Mapping[str, Any]], bool],
    report: Callable[[str], object],
) -> Path:
    folder = searched_folder(path)
    run_dirs = run_dirs_below(folder) if folder.is_dir() else []
    if not run_dirs and folder != path:
        raise UserError(f"{key}={path}: there is no run below {folder}/; train one, or name a run")
    if not run_dirs or run_dirs == [path]:
        return path
    fitting = [run_dir for run_dir in run_dirs if _fits(RunDirectory(run_dir), wanted, fits)]
    if not fitting:
        listed = ", ".join(map(str, run_dirs[-MAX_LISTED_RUNS:]))
        more = ", ..." if len(run_dirs) > MAX_LISTED_RUNS else ""
        way_out = f"name one of {listed}{more}"
        if wanted == "unfinished":
            way_out = "runs that a process trains now do not count; start a new run without resume="
        raise UserError(f"{key}={path}: no run below {folder}/ is {wanted}; {way_out}")
    latest = max(fitting, key=_written)
    among = f"the only {wanted} run" if len(fitting) == 1 else f"the latest of {len(fitting)}"
    among += "" if len(fitting) == 1 else f" {wanted} runs"
    report(f"{key}={path}: {latest}, {among} below {folder}/")
    return latest


def searched_folder(path: Path) -> Path:
    """runs/ for the word `latest`, unless something of this name exists; else the path."""
    return RUNS_FOLDER if str(path) == LATEST and not path.exists() else path


def _fits(directory: RunDirectory, wanted: str, fits: Callable[[Mapping[str, Any]], bool]) -> bool:
    try:
        record = directory.read_record()
    except UserError:  # a damaged run.json of another run
        return False
    if "part" in record or not fits(record):
        return False
    return wanted == "finished" or directory.holder() is None


def _written(run_dir: Path) -> tuple[float, str]:
    """When a run was written last; of equal times the last name counts."""
    directory = RunDirectory(run_dir)
    path = directory.record if directory.record.exists() else directory.config
    return (path.stat().st_mtime if path.exists() else 0.0, str(run_dir))
