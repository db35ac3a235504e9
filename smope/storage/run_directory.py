"""The run directory: everything a run writes, and how to write it without half-written files.

config.yaml      the resolved configuration, written first
train.log        what the run printed
metrics.csv      one row for each epoch
run.json         accuracy matrix, scores, costs, versions, hashes; rewritten after each task
model.safetensors  the trained state for classifying images, see run/artefact.py; after each task
model_card.md    what that is, for people: see run/model_card.py
checkpoints/     see training/checkpoint.py
analysis/        outputs of the evaluation after each task, see training/recording.py
.lock            held while a process trains here
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from smope.errors import UserError
from smope.storage.commands import resume_command
from smope.storage.files import try_lock, unwritten, write_atomically
from smope.storage.readable_json import readable_json

RUN_FORMAT_VERSION = 1
RUNS_FOLDER = Path("runs")  # where runs without run_dir go
LOCK_GRACE_SECONDS = 1.0  # within which a process that begins a run has taken its lock


def tasks_done(record: Mapping[str, Any]) -> int:
    """The number of tasks with results in a run.json: rows of its matrix that are not empty."""
    return sum(
        any(value is not None for value in row) for row in record.get("accuracy_matrix") or []
    )


def check_run(path: Path, key: str = "RUN") -> None:
    """Raise UserError if there is neither a directory nor a file.

    Args:
        path: What the user wrote.
        key: What the error calls it.
    """
    if not path.exists():
        raise UserError(
            f"{key}={path}: no such file or directory; give a run directory or its "
            "model.safetensors"
        )


def model_file(path: Path) -> Path:
    """The file of a model, of which `path` is the run directory or the file itself."""
    return RunDirectory(path).model if path.is_dir() else path


class RunDirectory:
    """Paths and writers of one run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.log = path / "train.log"
        self.metrics = path / "metrics.csv"
        self.record = path / "run.json"
        self.model = path / "model.safetensors"
        self.model_card = path / "model_card.md"
        self.checkpoints = path / "checkpoints"
        self.analysis = path / "analysis"

    @classmethod
    def check_free(cls, path: Path) -> None:
        """UserError unless `path` can become a new run directory."""
        if path.exists() and not path.is_dir():
            raise UserError(f"run_dir={path}: is a file; name a directory that does not exist yet")
        if path.is_dir() and any(path.iterdir()):
            resume_hint = (
                f", or continue that run with: {resume_command(path)}"
                if cls(path).config.is_file()
                else ""
            )
            raise UserError(
                f"run_dir={path}: is not empty, and a run overwrites nothing; name a new "
                f"directory{resume_hint}"
            )

    @classmethod
    def create(cls, path: Path, config_yaml: str) -> RunDirectory:
        """Make the directory and write the configuration into it.

        Args:
            path: The directory; it must not exist, or be empty.
            config_yaml: The text of config.yaml.
        """
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
        """An existing run directory.

        Args:
            path: The directory.
            key: What errors call it.

        Raises:
            UserError: if it is no run directory.
        """
        directory = cls(path)
        if not directory.config.is_file():
            problem = (
                "no such directory"
                if not path.exists()
                else "holds no config.yaml, so it is not a run directory"
            )
            raise UserError(
                f"{key}={path}: {problem}; run directories are named runs/<name>/<time>"
            )
        return directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the directory. UserError if another process is training here.

        The kernel releases the lock when the process ends, however it ends.
        """
        path = self.path / ".lock"
        try:
            file = self._lock(path)
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

    def _lock(self, path: Path) -> IO[str]:
        """The lock file, open and locked.

        A process that only asks who the holder is locks it too, for less than LOCK_GRACE_SECONDS.
        """
        end = time.monotonic() + LOCK_GRACE_SECONDS
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
        """The process that trains here at the moment; None if there is none."""
        path = self.path / ".lock"
        try:
            file = path.open("r+")
        except OSError:
            return None
        with file:  # closing it releases the lock
            if try_lock(file, path) or not path.exists():
                return None
            return file.read() or "another process"

    def remove_leftovers(self) -> None:
        """Delete the temporary files of a process that was killed."""
        for path in self.path.rglob(".*.tmp"):
            path.unlink()

    def read_record(self) -> dict[str, Any]:
        """The content of run.json, {} if there is none yet. UserError if it is damaged."""
        try:
            return json.loads(self.record.read_bytes()) if self.record.is_file() else {}
        except ValueError as error:
            raise UserError(
                f"{self.record}: is damaged ({error}); delete it, and it is written again by: "
                f"{resume_command(self.path)}"
            ) from error

    def write_record(self, record: Mapping[str, Any]) -> None:
        try:
            write_atomically(self.record, (readable_json(record) + "\n").encode())
        except OSError as error:
            raise unwritten(self.record, error, ", then resume") from error

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row to metrics.csv.

        The first row decides the columns. A name that comes later widens the table: earlier rows
        are empty there. A column that `row` does not have is empty in it.
        """
        try:
            header = self._metrics_header()
            columns = list(dict.fromkeys([*header, *row]))
            if columns != header:
                self._widen_metrics(columns)
            with self.metrics.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns, restval="").writerow(row)
        except OSError as error:
            raise unwritten(self.metrics, error, ", then resume") from error

    def _metrics_header(self) -> list[str]:
        """The columns of metrics.csv; none if there is no file yet."""
        if not self.metrics.exists():
            return []
        with self.metrics.open(newline="", encoding="utf-8", errors="replace") as file:
            return next(csv.reader(file), [])

    def _widen_metrics(self, columns: Sequence[str]) -> None:
        """Write metrics.csv anew with these columns, of which the file has the first ones."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        if self.metrics.exists():
            with self.metrics.open(newline="", encoding="utf-8", errors="replace") as file:
                writer.writerows(csv.DictReader(file))
        write_atomically(self.metrics, text.getvalue().encode())

    def drop_metrics_after(self, step: int) -> None:
        """Forget the rows of epochs that ended later, and a row cut short.

        A resumed run writes the rows of these epochs again.
        """
        if not self.metrics.exists():
            return
        text = self.metrics.read_bytes().decode("utf-8", errors="replace")
        whole_lines = text[: text.rfind("\n") + 1]
        header, *rows = list(csv.reader(io.StringIO(whole_lines, newline=""))) or [[]]
        column = header.index("step") if "step" in header else 0
        kept_rows = [
            row
            for row in rows
            if len(row) == len(header) and row[column].isdigit() and int(row[column]) <= step
        ]
        file = io.StringIO(newline="")
        csv.writer(file).writerows([header, *kept_rows] if header else [])
        write_atomically(self.metrics, file.getvalue().encode())
