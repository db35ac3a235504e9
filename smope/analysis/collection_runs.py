"""One line a run, finished or not: for a spreadsheet, or a program of one's own. Imports no torch.

Scores are fractions, as in run.json. Runs that a sweep planned and that are not there have a line
as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smope.analysis.collection import COLUMNS, Run
from smope.console.markup import csv_grid
from smope.errors import UserError
from smope.metrics.accuracy_matrix import backward_transfer
from smope.storage.files import write_atomically
from smope.storage.run_directory import RunDirectory, tasks_done
from smope.storage.sweep_manifest import last_line, read_manifests

SCORES = (
    "final_average_accuracy",
    "cumulative_average_accuracy",
    "forgetting",
    "sample_weighted_accuracy",
)
COSTS = {
    "parameters": "parameters", "train GFLOPs": "train_gflops", "test GFLOPs": "test_gflops", "seconds": "seconds",
    "state MiB": "state_mib", "process MiB": "process_mib", "GPU MiB": "gpu_mib",
}  # fmt: skip
SUFFIXES = (".csv", ".parquet")


def planned_but_absent(paths: Iterable[Path], arguments: Iterable[Path]) -> list[dict[str, Any]]:
    """Jobs of the sweeps in the folders of these runs that have no run directory; `error` says how
    one failed.
    """
    folders = dict.fromkeys(
        [*(path.parent for path in paths), *(path for path in arguments if path.is_dir())]
    )
    absent: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        for manifest in read_manifests(folder):
            for job in manifest["jobs"]:
                if not list(folder.glob(f"*{job['config_hash']}")):
                    log = folder / job["log"]
                    absent[folder / job["run"]] = {
                        **job, "path": folder / job["run"], "command": manifest["command"], "error": last_line(log),
                        "log_path": log,
                    }  # fmt: skip
    return list(absent.values())


def absent_lines(absent: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each job that has no run directory."""
    lines = []
    for job in absent:
        what = f"failed: {job['error']}; log: {job['log_path']}" if job["error"] else "not begun"
        lines.append(f"{job['path']}: {what}; go on with: {job['command']}")
    return lines


def run_lines(paths: Sequence[Path], absent: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each run and for each job that is absent; settings in which runs differ have
    columns of their own.
    """
    records = {path: _record(path) for path in paths}
    settings = {path: _settings(record) for path, record in records.items()}
    differing = [key for key in _keys(settings.values()) if _differs(key, list(settings.values()))]
    lines = [{**_line(path, record), **{key: _plain(settings[path].get(key)) for key in differing}}
             for path, record in records.items()]  # fmt: skip
    lines += [
        {"run": str(job["path"]), "status": "failed" if job["error"] else "not begun", "method": job["method"],
         "seed": job["seed"], "config_hash": job["config_hash"]}
        for job in absent
    ]  # fmt: skip
    columns = _keys(lines)
    return [{column: line.get(column) for column in columns} for line in lines]


def write_run_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """As CSV or Parquet, by the suffix. UserError where that cannot be."""
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


def _record(path: Path) -> dict[str, Any]:
    try:
        return RunDirectory(path).read_record()
    except UserError:
        return {"status": "damaged"}


def _line(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    matrix = record.get("accuracy_matrix") or []
    stream, backbone = record.get("stream", {}), record.get("backbone", {})
    status = record.get("status", "not begun")
    if status == "running" and RunDirectory(path).holder() is None:
        status = "killed"
    done = status == "finished"
    return {
        "run": str(path),
        "status": status,
        "method": record.get("method"),
        "seed": record.get("seed"),
        "stream": stream.get("name"),
        "images": str(stream["content_hash"])[:12] if "content_hash" in stream else None,
        "evaluated_on": record.get("evaluated_on"),
        "search_ranked_on": record.get("part", {}).get("ranked_on"),
        "backbone": backbone.get("name"),
        "tasks": len(matrix) or None,
        "tasks_done": tasks_done(record),
        **{score: record.get(score) if done else None for score in SCORES},
        "backward_transfer": backward_transfer(matrix) if done else None,
        **{COSTS[column.title]: column.read(record) for column in COLUMNS if column.title in COSTS},
        "device": record.get("device"),
        "config_hash": record.get("config_hash"),
    }


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What decides about numbers, by dotted key; nothing where run.json does not say."""
    return Run(Path(), record).settings if "config" in record else {}


def _keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _differs(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    known = [own for own in settings if own]  # a run that was killed early has no run.json
    return any(own.get(key) != known[0].get(key) for own in known)


def _plain(value: Any) -> Any:
    """Lists and the like as text, so that a column has one type."""
    return value if isinstance(value, int | float | str | None) else str(value)
