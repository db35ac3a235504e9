"""Training a published row for each seed, or reading runs that exist."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smope.config.config import Config
from smope.config.hydra import compose_values
from smope.config.identity import flatten
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.reproduction.published import PublishedRow, changed_data, changed_settings, images
from smope.run.plan import plan
from smope.storage.commands import resume_command
from smope.storage.run_directory import RUNS_FOLDER, RunDirectory
from smope.storage.run_search import finished_run

Records = dict[str, dict[str, Any]]
"""run.json of each run, by its directory."""


@dataclass(frozen=True)
class SeedRun:
    """The run of one seed; `config` is None if the run in `run_dir` is finished."""

    seed: int
    run_dir: Path
    config: Config | None
    resume: bool = False


def row_settings(name: str, config_dir: str | None) -> dict[str, Any]:
    """The settings of a row by dotted key.

    Args:
        name: The row, which is also the name of its file in conf/experiment/.
        config_dir: A further folder laid out like conf/, or None.

    Returns:
        Values; `???` for a key that the user has to set.
    """
    return flatten(compose_values(read_overrides([f"experiment={name}"], config_dir)))


def plan_seed(
    name: str, overrides: Sequence[str], seed: int, config_dir: str | None = None
) -> SeedRun:
    """Where the run of a seed belongs, and what is left to do there.

    Args:
        name: The row.
        overrides: Settings that the user changed, as `key=value`.
        seed: The seed.
        config_dir: A further folder laid out like conf/, or None.

    Raises:
        UserError: If the configuration is invalid, or the directory has a run with other settings.
    """
    texts = [f"experiment={name}", *overrides, f"seed={seed}"]
    settings = flatten(compose_values(read_overrides(texts, config_dir)))
    run_dir = _run_dir(settings, changed_settings(row_settings(name, config_dir), settings), seed)
    directory = RunDirectory(run_dir)
    if not directory.config.is_file():
        config, _, _ = plan(read_overrides([*texts, f"run_dir={run_dir}"], config_dir))
        return SeedRun(seed, run_dir, config)
    record = directory.read_record()
    other = changed_settings(settings, flatten(record["config"])) if record else []
    if other:
        raise UserError(
            f"{run_dir} holds a run with {', '.join(other)}, in brackets what is asked for now; "
            f"move that folder away, or write name=... to use another"
        )
    if record.get("status") == "finished":
        return SeedRun(seed, run_dir, None)
    config, _, _ = plan(read_overrides([*texts, f"resume={run_dir}"], config_dir))
    return SeedRun(seed, run_dir, config, resume=True)


def _run_dir(settings: Mapping[str, Any], changed: Sequence[str], seed: int) -> Path:
    """runs/<name>/seed-<n>; runs with changed settings have a folder of their own in between."""
    folder = RUNS_FOLDER / str(settings["name"])
    if changed:
        folder /= f"changed-{digest(changed)}"
    return folder / f"seed-{seed}"


def digest(changed: Sequence[str]) -> str:
    """8 hex digits that name a list of changed settings."""
    return hashlib.sha256(" ".join(changed).encode()).hexdigest()[:8]


def require_images(row: PublishedRow, seed_runs: Sequence[SeedRun]) -> None:
    """UserError, before hours of training, if the images on disk are not those of the row."""
    config = next((run.config for run in seed_runs if run.config is not None), None)
    if config is None:
        return
    from smope.run.build_source import make_source

    source = make_source(config)
    numbers = {"train": len(source.train), "test": len(source.test)}
    other = changed_data(row, numbers, source.facts)
    if other:
        raise UserError(
            f"stream.root={config.stream.get('root')}: found {', '.join(other)}, in brackets what "
            f"the row wants, which is {row.data}; `smope train experiment=...` trains on other "
            f"images with the row's settings"
        )


def train_seeds(
    seed_runs: Sequence[SeedRun], command: str, write_line: Callable[[str], object]
) -> Records:
    """Train what is not finished, one seed after the other.

    Args:
        seed_runs: The runs, as `plan_seed` gives them.
        command: The command that continues after an interruption.
        write_line: Receives a line when a seed begins, and when training is interrupted.

    Returns:
        run.json of every run, by its directory.
    """
    for number, run in enumerate(seed_runs, 1):
        label = f"seed {run.seed} ({number} of {len(seed_runs)})"
        if run.config is None:
            write_line(f"{label}: finished before, in {run.run_dir}")
            continue
        write_line(f"{label}: {'resuming' if run.resume else 'starting'} in {run.run_dir}")
        from smope.run.train import train

        try:
            train(run.config, run.run_dir, resume=run.resume)
        except KeyboardInterrupt:
            write_line(f"stopped in seed {run.seed}; the same command continues: {command}")
            raise
    return {str(run.run_dir): RunDirectory(run.run_dir).read_record() for run in seed_runs}


def read_finished_runs(paths: Sequence[Path]) -> Records:
    """run.json of each run, by its directory.

    UserError if one is not finished, or two have the same seed.
    """
    records: Records = {}
    for path in (finished_run(path.expanduser(), print, "--check RUN") for path in paths):
        record = RunDirectory.open(path, "--check RUN").read_record()
        if record.get("status") != "finished":
            raise UserError(
                f"--check RUN={path}: is not finished; continue it with: {resume_command(path)}"
            )
        same_seed = [other for other in records if records[other]["seed"] == record["seed"]]
        if same_seed:
            raise UserError(
                f"--check {same_seed[0]} {path}: both have seed {record['seed']}; give one run a "
                f"seed"
            )
        records[str(path)] = record
    return records


def changes_of_runs(
    row: PublishedRow, settings: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What runs did otherwise than the row, each text once.

    Args:
        row: The published row.
        settings: The row's settings by dotted key.
        records: run.json of each run.
    """
    changes: dict[str, None] = {}
    for record in records.values():
        changes |= dict.fromkeys(changed_settings(settings, flatten(record["config"])))
        changes |= dict.fromkeys(changed_data(row, images(record), record["stream"]))
    return list(changes)
