"""Every run in a line of its own, finished or not, for a spreadsheet or a program.

Runs that a sweep planned and that have not begun have a line too. Scores are fractions, as in
run.json. Imports neither torch nor pandas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smope.analysis.labels import differing_keys
from smope.analysis.run import Run
from smope.analysis.tables import COST_COLUMNS, EXPERTS_COLUMNS
from smope.config.run_identity import HASH_DIGITS, deciding_settings
from smope.console.markup import csv_grid
from smope.errors import UserError
from smope.metrics.scores import SCORES
from smope.storage.files import write_atomically
from smope.storage.run_directory import RunDirectory, tasks_done
from smope.storage.sweep_manifest import last_line, read_manifests

RUN_LIST_SUFFIXES = (".csv", ".parquet")


def missing_jobs(paths: Iterable[Path], folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The jobs of sweeps that have no run directory.

    Args:
        paths: Run directories; the sweeps in their parent folders are read.
        folders: Further folders whose sweeps are read; paths that are no folder are ignored.

    Returns:
        The entries of the sweeps' manifests, with `path`, `command` of the sweep, `log_path`, and
        `error`, the reason if the job failed.
    """
    parents = [path.parent for path in paths]
    missing: dict[Path, dict[str, Any]] = {}
    for folder in dict.fromkeys([*parents, *(path for path in folders if path.is_dir())]):
        for manifest in read_manifests(folder):
            for job in manifest["jobs"]:
                if list(folder.glob(f"*{job['config_hash']}")):
                    continue
                log = folder / job["log"]
                missing[folder / job["run"]] = {
                    **job,
                    "path": folder / job["run"],
                    "command": manifest["command"],
                    "error": last_line(log),
                    "log_path": log,
                }
    return list(missing.values())


def missing_job_lines(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line of text for each job of `missing_jobs`."""
    lines = []
    for job in jobs:
        state = "not begun"
        if job["error"]:
            state = f"failed: {job['error']}; log: {job['log_path']}"
        lines.append(f"{job['path']}: {state}; continue with: {job['command']}")
    return lines


def run_list(paths: Sequence[Path], jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The list: a mapping with the same keys for each run and each missing job.

    Args:
        paths: Run directories.
        jobs: Jobs without a run directory, as `missing_jobs` gives them.

    Returns:
        Facts, scores and costs by column; settings in which the runs differ are columns too.
    """
    records = {path: _read_record(path) for path in paths}
    settings = {path: _settings(record) for path, record in records.items()}
    known = [values for values in settings.values() if values]
    differing = differing_keys(known) if known else []
    lines = []
    for path, record in records.items():
        values = {key: _single_value(settings[path].get(key)) for key in differing}
        lines.append({**_run_line(path, record), **values})
    lines += map(_job_line, jobs)
    columns = list(dict.fromkeys(key for line in lines for key in line))
    return [{column: line.get(column) for column in columns} for line in lines]


def write_run_list(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the lines as CSV or Parquet, by the suffix.

    Args:
        path: The file; its suffix is one of RUN_LIST_SUFFIXES.
        lines: The result of `run_list`.

    Raises:
        UserError: If Parquet is wanted and pyarrow is not installed.
    """
    if path.suffix == ".csv":
        rows = [["" if value is None else str(value) for value in line.values()] for line in lines]
        write_atomically(path, (csv_grid([list(lines[0]), *rows]) + "\n").encode())
        return
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError(
            f"--runs {path}: parquet needs pyarrow; pip install 'smope[parquet]', or write .csv"
        ) from error
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist([dict(line) for line in lines]), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return RunDirectory(path).read_record()
    except UserError:
        return {"status": "damaged"}


def _run_line(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    run = Run(path, record)
    stream, backbone = record.get("stream", {}), record.get("backbone", {})
    status = record.get("status", "not begun")
    if status == "running" and RunDirectory(path).holder() is None:
        status = "killed"
    # the average over a part of the tasks is no score
    scores = run.scores if run.finished else dict.fromkeys(SCORES)
    return {
        "run": str(path),
        "status": status,
        "method": record.get("method"),
        "seed": record.get("seed"),
        "stream": stream.get("name"),
        "images": str(stream["content_hash"])[:HASH_DIGITS] if "content_hash" in stream else None,
        "evaluated_on": record.get("evaluated_on"),
        "search_ranked_on": record.get("part", {}).get("ranked_on"),
        "backbone": backbone.get("name"),
        "tasks": len(record.get("accuracy_matrix") or []) or None,
        "tasks_done": tasks_done(record),
        **scores,
        **{column.key: column.read(run) for column in (*EXPERTS_COLUMNS, *COST_COLUMNS)},
        "device": record.get("device"),
        "config_hash": record.get("config_hash"),
    }


def _job_line(job: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": str(job["path"]),
        "status": "failed" if job["error"] else "not begun",
        "method": job["method"],
        "seed": job["seed"],
        "config_hash": job["config_hash"],
    }


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide numbers; none if the run was killed before it wrote run.json."""
    return deciding_settings(record["config"]) if "config" in record else {}


def _single_value(value: Any) -> Any:
    """Lists and mappings as text, so that a column has one type."""
    return value if isinstance(value, int | float | str | None) else str(value)
