"""One run: what its run.json says. Imports neither torch nor pandas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smope.config import run_identity
from smope.metrics.scores import finished_rows, recorded_scores

if TYPE_CHECKING:
    from smope.analysis.snapshots import Snapshots


@dataclass(frozen=True)
class Run:
    """One run directory.

    record:          the content of run.json.
    method_label:    the method, with the settings that tell it from others on the same benchmark.
    benchmark_label: the benchmark; empty if all runs that were loaded together share one.
    repeats:         directories of further runs with the same configuration, seed and numbers.

    The labels are given by `smope.analysis.labels.label_runs`.
    """

    path: Path
    record: Mapping[str, Any]
    method_label: str = ""
    benchmark_label: str = ""
    repeats: tuple[Path, ...] = ()

    @property
    def label(self) -> str:
        """The name of the run's configuration among the runs that it was loaded with."""
        return " on ".join(part for part in (self.method_label, self.benchmark_label) if part)

    @property
    def name(self) -> str:
        """Label and seed, as tables and figures call this run."""
        return f"{self.label}, seed {self.seed}"

    @property
    def method(self) -> str:
        return run_identity.method_name(self.record)

    @property
    def seed(self) -> int:
        return self.record["seed"]

    @property
    def stream(self) -> str:
        """A hash of images, tasks and class order; two runs with the same one form a pair."""
        return self.record["stream"]["identity"]

    @cached_property
    def benchmark(self) -> dict[str, Any]:
        """Images, tasks and backbone by key: runs that differ here are not compared."""
        return run_identity.benchmark_of(self.record)

    @cached_property
    def method_settings(self) -> dict[str, Any]:
        """Method, router and trainer by key: equal for runs that differ in nothing but the seed."""
        return run_identity.method_settings_of(self.record)

    @property
    def matrix(self) -> list[list[float]]:
        """Accuracies as fractions: a row for each finished task, a value for each task seen."""
        return finished_rows(self.record)

    @cached_property
    def scores(self) -> dict[str, float | None]:
        """Every score of `smope.metrics.scores.SCORES` over the finished tasks."""
        return recorded_scores(self.record)

    @property
    def tasks_done(self) -> int:
        return len(self.matrix)

    @property
    def num_tasks(self) -> int:
        return len(self.record.get("tasks") or self.record.get("accuracy_matrix") or [])

    @property
    def finished(self) -> bool:
        return self.record.get("status") == "finished"

    @property
    def classes_of_tasks(self) -> list[list[int]]:
        """The labels of each task's training images."""
        return [task["classes"] for task in self.record["tasks"]]

    @property
    def class_incremental(self) -> bool:
        """Whether every class belongs to one task alone."""
        counts = Counter(label for classes in self.classes_of_tasks for label in classes)
        return max(counts.values()) == 1

    @cached_property
    def snapshots(self) -> Snapshots:
        """What evaluation recorded after the finished tasks."""
        from smope.analysis.snapshots import Snapshots

        return Snapshots(self.path, self.tasks_done)

    @property
    def has_snapshots(self) -> bool:
        """Whether evaluation recorded logits after every finished task."""
        finished = set(range(1, self.tasks_done + 1))
        return bool(finished) and finished <= set(self.snapshots.recorded)
