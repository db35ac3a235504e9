"""A job of a sweep: its configuration, its folder, and its state, which is always read from disk.

A job is known by `Config.config_hash`. Its folder is runs/<name>/<swept values>-<hash>, so another
command with the same computation finds the same folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from smope.config.config import Config
from smope.config.signatures import chosen_name
from smope.errors import UserError
from smope.storage.run_directory import RUNS_FOLDER, RunDirectory, tasks_done
from smope.storage.sweep_manifest import LOGS, last_line

FOLDER_NAME_CHARACTERS = 60  # at most, before the hash


class State(Enum):
    """How far a job is, by the files in its folder."""

    NEW = "new"
    FINISHED = "finished"
    IN_USE = "in use"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """One combination of a sweep.

    Attributes:
        label: The swept keys and values, which tell it from the other jobs.
        texts: Its overrides, as Hydra takes them.
        config: Its validated configuration.
        path: Its run directory.
    """

    label: str
    texts: tuple[str, ...]
    config: Config
    path: Path

    @property
    def log(self) -> Path:
        """The output of a failed job. It is beside the run directories, for some jobs fail before
        they have one.
        """
        return self.path.parent / LOGS / f"{self.path.name}.log"

    def failure(self) -> str | None:
        """The error, which is the last line of its log; None if there is no log."""
        return last_line(self.log)


def make_job(config: Config, texts: Sequence[str], swept: Iterable[str]) -> Job:
    """A job in the folder that its configuration already has, or in a new one.

    Args:
        config: The validated configuration.
        texts: Its overrides, as Hydra takes them.
        swept: The swept overrides, key=value; a new folder is named after them, or after method and
            seed where nothing is swept.
    """
    swept = list(swept)
    words = _words(swept) or [chosen_name(config.method["_target_"]), f"seed{config.seed}"]
    path = RUNS_FOLDER / config.name / "-".join([*words, config.config_hash])
    return at_its_folder(Job(" ".join(swept) or "defaults", tuple(texts), config, path))


def at_its_folder(job: Job) -> Job:
    """The job with its present folder: another command may have begun it elsewhere meanwhile."""
    folders = sorted(
        path for path in job.path.parent.glob(f"*{job.config.config_hash}") if path.is_dir()
    )
    return replace(job, path=folders[0]) if folders else job


def _words(swept: Sequence[str]) -> list[str]:
    """Swept overrides as part of a folder's name: smope, seed0, top_k3."""
    words = []
    for text in swept:
        key, _, value = text.partition("=")
        number = re.fullmatch(r"[-\d.e]+|true|false|null|\[.*", value)
        words.append(
            re.sub(r"[^\w.+-]+", "_", (key.rpartition(".")[2] if number else "") + value).strip("_")
        )
    name = "-".join(words)[:FOLDER_NAME_CHARACTERS].strip("-_.")
    return [name] if name else []


def inspect_job(job: Job) -> tuple[State, str]:
    """The state of a job, and what a sweep does with it, in words."""
    directory = RunDirectory(job.path)
    holder = directory.holder()
    if holder is not None:
        return State.IN_USE, f"being trained by {holder}, left to it"
    try:
        record = directory.read_record()
    except UserError:  # the job itself fails with this error; other jobs continue
        return State.FAILED, "its run.json is damaged, tried again"
    status = record.get("status")
    if status == "finished":
        return State.FINISHED, "finished before, skipped"
    if status == "failed" or (status is None and job.log.is_file()):
        return State.FAILED, f"failed {_how_far(record)}, tried again"
    if directory.config.is_file():
        how = "was interrupted" if status == "interrupted" else "was killed"
        return State.STOPPED, f"{how} {_how_far(record)}, continues"
    return State.NEW, "new"


def _how_far(record: dict[str, Any]) -> str:
    rows = record.get("accuracy_matrix", [])
    return f"after {tasks_done(record)} of {len(rows)} tasks" if rows else "before its first task"


def clear_stub(path: Path) -> None:
    """Remove the empty folders that a process leaves if it is killed while it makes a run
    directory.
    """
    if (path / "config.yaml").is_file() or not path.is_dir():
        return
    for leftover in path.glob(".*.tmp"):
        leftover.unlink()
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
