"""Experiment trackers: the only place that knows W&B."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

INIT_SECONDS = 30.0  # that W&B may take to answer at the start; its own default is three times that


class Tracker:
    """Receives what a run measures; this one keeps nothing (the run directory has it all)."""

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str) -> None:
        """Called once before training."""

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """One epoch's losses, or one task's accuracy."""

    def finish(self, scores: Mapping[str, Any]) -> None:
        """Called once after training with the final scores."""


class NoTracker(Tracker):
    """Tracks nothing beside the run directory."""


class Guarded(Tracker):
    """A tracker that cannot harm a run: its first exception is told of, once, and after that it is done without.

    Whatever a service answers must not cost hours of training: the run directory has everything anyway.
    """

    def __init__(self, tracker: Tracker, tell: Callable[[str], object]) -> None:
        self._tracker = tracker
        self._tell = tell
        self._works = True

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str) -> None:
        self._try("did not start", self._tracker.start, config, run_dir, name)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._try("failed", self._tracker.log, values, step)

    def finish(self, scores: Mapping[str, Any]) -> None:
        self._try("failed", self._tracker.finish, scores)

    def _try(self, what: str, call: Callable[..., None], *arguments: Any) -> None:
        if not self._works:
            return
        try:
            call(*arguments)
        except Exception as error:
            self._works = False
            reason = " ".join(str(error).split()) or type(error).__name__
            self._tell(f"no tracking: {type(self._tracker).__name__} {what} ({reason}); training goes on")


class WandbTracker(Tracker):
    """Weights & Biases. mode "auto": as WANDB_MODE says, else online where an API key is configured, else offline;
    it never prompts."""

    def __init__(
        self,
        project: str = "smope",
        entity: str | None = None,
        group: str | None = None,
        mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    ) -> None:
        self.project = project
        self.entity = entity
        self.group = group
        self.mode: Literal["auto", "online", "offline", "disabled"] = mode
        self._run: Any = None

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str) -> None:
        import wandb

        mode = self._mode()
        if mode == "online" and not _has_key():  # W&B would ask for one, and wait
            raise RuntimeError("no W&B API key: set WANDB_API_KEY, or use tracker.mode=offline and wandb sync later")
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            name=name,
            dir=str(run_dir),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(silent=True, init_timeout=INIT_SECONDS),
        )

    def _mode(self) -> Literal["online", "offline", "disabled"]:
        """The mode asked for; "auto" follows WANDB_MODE, then whether there is a key."""
        if self.mode != "auto":
            return self.mode
        wanted = os.environ.get("WANDB_MODE")
        if wanted in ("online", "offline", "disabled"):
            return wanted
        return "online" if _has_key() else "offline"

    def log(self, values: Mapping[str, Any], step: int) -> None:
        if self._run is not None:
            self._run.log(dict(values), step=step)

    def finish(self, scores: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._run.summary.update(dict(scores))
            self._run.finish()


def _has_key() -> bool:
    """Whether W&B could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "wandb" in netrc.read_text()
    except OSError:
        return False
