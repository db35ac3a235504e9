"""A job of a sweep: its configuration, its place, and what became of it so far. Read from the disk,
never remembered.

Its identity is `Config.config_hash`: runs/<name>/<what is swept>-<hash>. The same computation is
found again whatever the rest of the command was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from smope.config.config import Config
from smope.errors import UserError
from smope.storage.run_directory import RunDirectory, tasks_done
from smope.storage.sweep_manifest import LOGS, last_line

RUNS = Path("runs")
LONGEST = 60  # characters of a folder's name before its hash


class State(Enum):
    """What is on the disk of a job."""

    NEW = "new"
    FINISHED = "finished"
    IN_USE = "in use"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """One combination: what tells it from the others, its overrides for Hydra, configuration and
    run directory.
    """

    label: str
    texts: tuple[str, ...]
    config: Config
    path: Path

    @property
    def log(self) -> Path:
        """What a job that failed said; kept beside the run directories, for some fail before they
        have one.
        """
        return self.path.parent / LOGS / f"{self.path.name}.log"

    def failure(self) -> str | None:
        """The last line of its log, the error; None where it left none."""
        return last_line(self.log)


def make_job(config: Config, texts: Sequence[str], swept: Iterable[str]) -> Job:
    """A job, in the folder that its configuration has had before, or in a new one named after what
    is `swept`.
    """
    swept = list(swept)
    path = RUNS / config.name / "-".join([*_words(swept), config.config_hash])
    return found_again(Job(" ".join(swept) or "defaults", tuple(texts), config, path))


def found_again(job: Job) -> Job:
    """The job in the folder that it has by now: since it was planned, another command may have
    begun it elsewhere.
    """
    there = sorted(
        path for path in job.path.parent.glob(f"*{job.config.config_hash}") if path.is_dir()
    )
    return replace(job, path=there[0]) if there else job


def _words(swept: Sequence[str]) -> list[str]:
    """What is swept as part of a file's name: smope, seed0, top_k3."""
    words = []
    for text in swept:
        key, _, value = text.partition("=")
        number = re.fullmatch(r"[-\d.e]+|true|false|null|\[.*", value)
        words.append(
            re.sub(r"[^\w.+-]+", "_", (key.rpartition(".")[2] if number else "") + value).strip("_")
        )
    name = "-".join(words)[:LONGEST].strip("-_.")
    return [name] if name else []


def look(job: Job) -> tuple[State, str]:
    """What there is of a job, and in words what a sweep makes of it."""
    directory = RunDirectory(job.path)
    holder = directory.holder()
    if holder is not None:
        return State.IN_USE, f"being trained by {holder}, left to it"
    try:
        record = directory.read_record()
    except UserError:  # it will say so itself when it is tried, and stop no other
        return State.FAILED, "its run.json is damaged, tried again"
    status = record.get("status")
    if status == "finished":
        return State.FINISHED, "finished before, skipped"
    if status == "failed" or (status is None and job.log.is_file()):
        return State.FAILED, f"failed {_how_far(record)}, tried again"
    if directory.config.is_file():
        how = "was interrupted" if status == "interrupted" else "was killed"
        return State.STOPPED, f"{how} {_how_far(record)}, goes on"
    return State.NEW, "new"


def _how_far(record: dict[str, Any]) -> str:
    rows = record.get("accuracy_matrix", [])
    return f"after {tasks_done(record)} of {len(rows)} tasks" if rows else "before its first task"


def clear_stub(path: Path) -> None:
    """Remove what a process leaves that is killed while it makes its run directory: folders,
    nothing in them.
    """
    if (path / "config.yaml").is_file() or not path.is_dir():
        return
    for leftover in path.glob(".*.tmp"):
        leftover.unlink()
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
