"""Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from smope.storage.files import write_atomically
from smope.trackers.base import Matrix, Tracker, numbers, pictures, task_values

INIT_SECONDS = 30.0  # that W&B may take to answer at the start; its own default is 90
# Runs that differ in these keys alone belong to one group.
NOT_GROUPED = ("seed", "run_dir", "resume", "tracker")


class WandbTracker(Tracker):
    """Weights & Biases: configuration, losses and learning rates of steps (step/...) and epochs
    (train/...), scores of each task, matrix as table and heat map, expert load, and at the end the
    small trained state with run.json and config.yaml as an artefact.

    mode:     "auto": as WANDB_MODE says, else online where an API key is configured, else offline.
              It never prompts.
    group:    null: the name and a hash of the configuration without its seed, so that seeds stand
              together.
    job_type: null: the method.
    upload:   whether to log the artefact.
    steps:    whether to log every training step, not only epochs.

    A resumed run continues the same W&B run; its identifier is in wandb.json of the run directory.
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

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        import wandb

        mode = self._mode()
        if mode == "online" and not _has_key():
            raise RuntimeError("no API key: run `wandb login`, or take tracker.mode=offline")
        self._run_dir, self._config = run_dir, config
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group or _group(config, name),
            job_type=self.job_type or str(config["method"]["_target_"]).split(".")[-2],
            name=f"{name}, seed {config['seed']}",
            id=_identifier(run_dir),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(silent=True, init_timeout=INIT_SECONDS),
        )

    def _mode(self) -> Literal["online", "offline", "disabled"]:
        """The mode; "auto" follows WANDB_MODE, and then whether there is an API key."""
        if self.mode != "auto":
            return self.mode
        wanted = os.environ.get("WANDB_MODE")
        if wanted in ("online", "offline", "disabled"):
            return wanted
        return "online" if _has_key() else "offline"

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        for step, row in enumerate(rows, first):
            self._run.log({f"step/{key}": value for key, value in row.items()}, step=step)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._run.log({f"train/{key}": value for key, value in numbers(values).items()}, step=step)

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

    def _log_state(self) -> None:
        """The last checkpoint (no backbone in it), the record and the configuration."""
        import wandb

        artefact = wandb.Artifact(f"state-{self._run.id}", type="model")
        checkpoints = sorted((self._run_dir / "checkpoints").glob("*.safetensors"))[-1:]
        for path in [*checkpoints, self._run_dir / "run.json", self._run_dir / "config.yaml"]:
            if path.is_file():
                artefact.add_file(str(path))
        self._run.log_artifact(artefact)


def _identifier(run_dir: Path) -> str:
    """This run's identifier at W&B, made once and kept in wandb.json."""
    path = run_dir / "wandb.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["id"]
    identifier = os.urandom(6).hex()
    write_atomically(path, json.dumps({"id": identifier}).encode())
    return identifier


def _group(config: Mapping[str, Any], name: str) -> str:
    kept = {key: value for key, value in config.items() if key not in NOT_GROUPED}
    return f"{name}-{hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]}"


def _has_key() -> bool:
    """Whether W&B can log in without a question: by an API key or an entry in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return (
            netrc(os.environ.get("NETRC", Path.home() / ".netrc")).authenticators(host) is not None
        )
    except (OSError, NetrcParseError):
        return False
