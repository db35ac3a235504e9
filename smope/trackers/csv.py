"""scores.csv in the run directory."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smope.storage.files import write_atomically
from smope.trackers.base import Matrix, Tracker


class CsvTracker(Tracker):
    """Writes scores.csv into the run directory: for each task the mean accuracy, and that on every
    task so far. metrics.csv, with a row for each epoch, is written by every run.
    """

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        self._path = run_dir / "scores.csv"

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        file = io.StringIO()
        tasks = len(matrix)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["after_task", "average_accuracy", *(f"task_{task + 1}" for task in range(tasks))]
        )
        for index, row in enumerate(matrix):
            writer.writerow([index + 1, sum(row) / len(row), *row, *[""] * (tasks - len(row))])
        write_atomically(self._path, file.getvalue().encode())
