"""The run directory: everything a run leaves behind, and how it is written so that nothing is ever
half there.

config.yaml      the resolved configuration, written first
train.log        what the run printed
metrics.csv      one row an epoch
run.json         accuracy matrix, scores, costs, versions, hashes; rewritten after each task
model.safetensors  what classifies images, see run/artefact.py; rewritten after each task
checkpoints/     see training/checkpoint.py
analysis/        what evaluation saw after each task, see training/recording.py
.lock            held while a process trains here
"""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from smope.errors import UserError
from smope.storage.files import try_lock, write_atomically

FORMAT_VERSION = 1
MOMENT = 1.0  # seconds within which a process that begins a run holds its lock
METRICS: tuple[str, ...] = (
    "task", "phase", "epoch", "step", "loss", "cross_entropy", "router", "prototype",
    "pull", "orthogonality", "soft", "hard", "contrastive", "outliers", "learning_rate", "images_per_second",
)  # fmt: skip


def tasks_done(record: Mapping[str, Any]) -> int:
    """How many tasks a run.json has results of: rows of its matrix that are not empty."""
    return sum(
        any(value is not None for value in row) for row in record.get("accuracy_matrix") or []
    )


def check_run(path: Path) -> None:
    """UserError where neither a run directory nor a file is."""
    if not path.exists():
        raise UserError(
            f"RUN={path}: no such file or directory; give a run directory or its model.safetensors"
        )


class RunDirectory:
    """Paths and writers of one run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.log = path / "train.log"
        self.metrics = path / "metrics.csv"
        self.record = path / "run.json"
        self.model = path / "model.safetensors"
        self.checkpoints = path / "checkpoints"
        self.analysis = path / "analysis"

    @classmethod
    def check_free(cls, path: Path) -> None:
        """UserError unless `path` can become a new run directory."""
        if path.exists() and not path.is_dir():
            raise UserError(f"run_dir={path}: is a file; name a directory that does not exist yet")
        if path.is_dir() and any(path.iterdir()):
            go_on = (
                f", or continue that run with: smope train resume={path}"
                if cls(path).config.is_file()
                else ""
            )
            raise UserError(
                f"run_dir={path}: is not empty, and a run overwrites nothing; name a new "
                f"directory{go_on}"
            )

    @classmethod
    def create(cls, path: Path, config_yaml: str) -> RunDirectory:
        """Make the directory and write the configuration into it."""
        cls.check_free(path)
        directory = cls(path)
        try:
            directory.checkpoints.mkdir(parents=True)
            write_atomically(directory.config, config_yaml.encode())
        except OSError as error:
            raise UserError(
                f"run_dir={path}: cannot be written ({error.strerror}); name another directory"
            ) from error
        return directory

    @classmethod
    def open(cls, path: Path, key: str = "RUN") -> RunDirectory:
        """An existing run directory; UserError where there is none."""
        directory = cls(path)
        if not directory.config.is_file():
            found = (
                "no such directory"
                if not path.exists()
                else "holds no config.yaml, so it is not a run directory"
            )
            raise UserError(f"{key}={path}: {found}; run directories are named runs/<name>/<time>")
        return directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process from training here. UserError where one is at it.

        The kernel lets go of the lock when the process ends, however it ends.
        """
        path = self.path / ".lock"
        try:
            file = self._hold(path)
        except OSError as error:
            raise UserError(
                f"run_dir={self.path}: cannot be written ({error.strerror}); make it writable, or "
                f"make room"
            ) from error
        with file:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def _hold(self, path: Path) -> IO[str]:
        """The open lock file, this process's; one that only looks who the holder is has it for
        less than MOMENT.
        """
        end = time.monotonic() + MOMENT
        while not try_lock(file := path.open("a+"), path):
            with file:
                if time.monotonic() > end:
                    file.seek(0)
                    raise UserError(
                        f"run_dir={self.path}: in use by {file.read() or 'another process'}; wait "
                        f"until it has ended, "
                        "or name another directory"
                    )
            time.sleep(0.05)
        return file

    def holder(self) -> str | None:
        """Which process trains here at the moment; None where none does."""
        path = self.path / ".lock"
        try:
            file = path.open("r+")
        except OSError:
            return None
        with file:  # closing it lets go of the lock again
            if try_lock(file, path) or not path.exists():
                return None
            return file.read() or "another process"

    def remove_leftovers(self) -> None:
        """Delete what a process that was killed had not finished writing."""
        for path in self.path.rglob(".*.tmp"):
            path.unlink()

    def read_record(self) -> dict[str, Any]:
        """run.json, or nothing where there is none yet; UserError where it is damaged."""
        try:
            return json.loads(self.record.read_bytes()) if self.record.is_file() else {}
        except ValueError as error:
            raise UserError(
                f"{self.record}: is damaged ({error}); delete it, then smope train "
                f"resume={self.path} writes it again"
            ) from error

    def write_record(self, record: Mapping[str, Any]) -> None:
        try:
            write_atomically(
                self.record, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
            )
        except OSError as error:
            raise OSError(
                f"{self.record}: cannot be written ({error.strerror}); make room, then resume"
            ) from error

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row to metrics.csv; columns that a method does not have stay empty, unknown
        losses are left out.
        """
        try:
            there = self._metrics_header()
            with self.metrics.open("a", newline="") as file:
                writer = csv.DictWriter(file, there or METRICS, extrasaction="ignore", restval="")
                if not there:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise OSError(
                f"{self.metrics}: cannot be written ({error.strerror}); make room, then resume"
            ) from error

    def _metrics_header(self) -> list[str]:
        """The columns that metrics.csv has: those of the version that began it; none where there
        is no file.
        """
        if not self.metrics.exists():
            return []
        with self.metrics.open(errors="replace") as file:
            header = file.readline().strip()
        return header.split(",") if header else []

    def drop_metrics_after(self, step: int) -> None:
        """Forget the rows of epochs that ended later, which a resumed run writes again, and a row
        cut short.
        """
        if not self.metrics.exists():
            return
        header, *lines = self.metrics.read_text(errors="replace").splitlines(keepends=True) or [""]
        names = self._metrics_header()
        column = names.index("step") if "step" in names else 0
        rows = [(line, line.split(",")) for line in lines if line.endswith("\n")]
        whole = [(line, row[column]) for line, row in rows if len(row) == len(names)]
        kept = [line for line, ended in whole if ended.isdigit() and int(ended) <= step]
        write_atomically(self.metrics, "".join([header, *kept]).encode())
