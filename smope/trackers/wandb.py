"""Weights & Biases."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from smope.config.run_identity import group_name, method_name
from smope.storage.files import write_atomically
from smope.storage.run_directory import RunDirectory
from smope.trackers.base import Matrix, Tracker, numbers, pictures, task_values

INIT_TIMEOUT_SECONDS = 30.0  # the default of W&B is three times that


class WandbTracker(Tracker):
    """Logs a run to Weights & Biases.

    Logged are the configuration, losses and learning rates of steps (step/...) and epochs
    (train/...), the scores and the use of experts (experts/...) after each task, the accuracy
    matrix as a table and a heat map, the load of experts, and at the end an artefact with the last
    checkpoint, run.json and config.yaml.

    mode:     "auto" follows WANDB_MODE; without it, online if an API key is configured, else
              offline. It never prompts.
    group:    null groups runs as `smope collect` does: one group for all runs that differ in
              nothing but the seed, see smope.config.run_identity.
    job_type: null means the method.
    upload:   whether to log the artefact.
    steps:    whether to log every training step, not only epochs.

    Where the run can be seen is reported at its start, and at the end of an offline run the
    command that sends it.

    A resumed run continues the same W&B run, whose identifier is in wandb.json of the run
    directory.
    """

    def __init__(
        self,
        project: str = "smope",
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
        upload: bool = True,
        steps: bool = True,
    ) -> None:
        self.project = project
        self.entity = entity
        self.group = group
        self.job_type = job_type
        self.mode: Literal["auto", "online", "offline", "disabled"] = mode
        self.upload = upload
        self.wants_steps = steps
        self._run: Any = None
        self._is_offline = False

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        import wandb

        mode, reason = self._mode()
        if mode == "online" and not _has_key():
            raise RuntimeError("no API key: run `wandb login`, or take tracker.mode=offline")
        self._run_dir, self._config = run_dir, config
        record = {**RunDirectory(run_dir).read_record(), "config": config}
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group or group_name(record),
            job_type=self.job_type or method_name(record),
            name=f"{name}, seed {config['seed']}",
            id=_identifier(run_dir),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(silent=True, init_timeout=INIT_TIMEOUT_SECONDS),
        )
        self._is_offline = mode == "offline"
        if self._is_offline:
            self.report(f"W&B is offline ({reason}); its files are in {run_dir / 'wandb'}")
        elif mode == "online":
            self.report(f"W&B: {self._run.url}")
        else:
            self.report(f"W&B is disabled ({reason}); nothing is logged")

    def _mode(self) -> tuple[Literal["online", "offline", "disabled"], str]:
        """The configured mode, and why; "auto" follows WANDB_MODE, then whether there is a key."""
        if self.mode != "auto":
            return self.mode, f"tracker.mode={self.mode}"
        wanted = os.environ.get("WANDB_MODE")
        if wanted in ("online", "offline", "disabled"):
            return wanted, f"WANDB_MODE={wanted}"
        if _has_key():
            return "online", "there is an API key"
        return "offline", "there is no API key: run `wandb login` for the next run"

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        for step, row in enumerate(rows, first):
            self._run.log({f"step/{key}": value for key, value in row.items()}, step=step)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._run.log({f"train/{key}": value for key, value in numbers(values).items()}, step=step)

    def log_experts(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({f"experts/{key}": value for key, value in values.items()}, step=step)

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        import wandb

        columns: list[Any] = ["after task", *(f"task {task + 1}" for task in range(len(matrix)))]
        data: list[Any] = [
            [index + 1, *row, *[None] * (len(matrix) - len(row))]
            for index, row in enumerate(matrix)
        ]
        drawn = pictures(self.draw, matrix, self._run_dir, self._config)
        images = {key: wandb.Image(image) for key, image in drawn.items()}
        table = wandb.Table(columns=columns, data=data)
        self._run.log(
            {**task_values(matrix, scores), "accuracy_matrix": table, **images}, step=step
        )

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        if self._run is None:
            return
        self._run.summary.update(dict(scores))
        if self.upload:
            self._log_state()
        self._run.finish(exit_code=0 if status == "finished" else 1)
        if self._is_offline:
            self.report(f"send this run to W&B with: {sync_command(self._run_dir)}")

    def _log_state(self) -> None:
        """Log the last checkpoint (without the backbone), run.json and config.yaml."""
        import wandb

        artefact = wandb.Artifact(f"state-{self._run.id}", type="model")
        checkpoints = sorted((self._run_dir / "checkpoints").glob("*.safetensors"))[-1:]
        for path in [*checkpoints, self._run_dir / "run.json", self._run_dir / "config.yaml"]:
            if path.is_file():
                artefact.add_file(str(path))
        self._run.log_artifact(artefact)


def sync_command(run_dir: Path) -> str:
    """The shell command that sends what W&B has not received of an offline run, oldest part first.

    A run that was resumed has a directory for each time; they are parts of one run at W&B, and
    their names begin with the time.
    """
    parts = [
        part
        for part in sorted((run_dir / "wandb").glob("offline-run-*"))
        if not list(part.glob("*.synced"))
    ]
    return " && ".join(shlex.join(["wandb", "sync", str(part)]) for part in parts)


def _identifier(run_dir: Path) -> str:
    """The identifier of this run at W&B; drawn once, then read from wandb.json."""
    path = run_dir / "wandb.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["id"]
    identifier = os.urandom(6).hex()
    write_atomically(path, json.dumps({"id": identifier}).encode())
    return identifier


def _has_key() -> bool:
    """Whether W&B can log in without a prompt: an API key, or its server in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return (
            netrc(os.environ.get("NETRC", Path.home() / ".netrc")).authenticators(host) is not None
        )
    except (OSError, NetrcParseError):
        return False
