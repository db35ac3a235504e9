"""Where the numbers of a training go while it runs: run directory, terminal and tracker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from smope.console.progress import Bar, Progress
from smope.console.tables import shortened
from smope.methods.base import Phase, TaskSpan
from smope.metrics.expert_use import tracked_use
from smope.storage.run_directory import RunDirectory
from smope.trackers.base import Tracker
from smope.training.history import History

MOST_ACCURACIES = 10  # of a line


def _silent() -> Progress:
    return Progress(None, quiet=True)


@dataclass
class Outputs:
    """What hears of each epoch and each task.

    Attributes:
        directory: takes metrics.csv, checkpoints and the record for the analysis; None writes
            nothing.
        progress: lines and bars on the terminal.
        tracker: an experiment tracker.
    """

    directory: RunDirectory | None = None
    progress: Progress = field(default_factory=_silent)
    tracker: Tracker = field(default_factory=Tracker)
    _remarked: set[str] = field(default_factory=set)

    def remark(self, title: str, remarks: Iterable[str]) -> None:
        """Print what a method remarks on a task; of each name, what precedes the colon, once.

        Args:
            title: names the task.
            remarks: Method.remarks().
        """
        for text in remarks:
            name = text.partition(":")[0]
            if name not in self._remarked:
                self._remarked.add(name)
                self.progress.line(f"{title}: {text}")

    def end_epoch(self, title: str, phase: Phase, row: Mapping[str, Any], bar: Bar) -> None:
        """Report one epoch of training.

        Args:
            title: names task and phase.
            phase: the phase that is under way.
            row: the epoch's line of metrics.csv.
            bar: the progress bar of the phase.
        """
        if self.directory is not None:
            self.directory.append_metrics(row)
        self.tracker.log(row, step=row["step"])
        epoch = f"epoch {row['epoch'] + 1}/{phase.epochs}"
        bar.note(f"{epoch}, loss {row['loss']:.3f}")
        speed = f"{row['images_per_second']:.0f} images a second"
        self.progress.epoch(f"{title} {epoch}: loss {row['loss']:.4f}, {speed}")

    def end_task(self, title: str, history: History) -> None:
        """Report a task that is learned and evaluated.

        Args:
            title: names the task.
            history: with the task's row of the accuracy matrix.
        """
        row = history.accuracy_matrix[-1]
        mean = sum(row) / len(row)
        each = " ".join(
            "..." if task is None else f"{100 * row[task]:.1f}"
            for task in shortened(len(row), MOST_ACCURACIES)
        )
        seconds = history.seconds_per_task[-1]
        self.progress.line(f"{title}: accuracy {100 * mean:.1f} % ({each}), {seconds:.1f} s")
        if history.expert_use:
            self.tracker.log_experts(tracked_use(history.expert_use[-1]), history.tracker_step)
        self.tracker.end_task(history.accuracy_matrix, history.scores(), step=history.tracker_step)


def task_title(span: TaskSpan, tasks: int) -> str:
    """A task's number among all, for people: "task 1/10".

    Args:
        span: the task.
        tasks: how many there are.

    Returns:
        The text.
    """
    return f"task {span.index + 1}/{tasks}"
