"""Experiment trackers beside the run directory, which has it all: W&B, TensorBoard, CSV. No other file knows them.

A tracker hears of training steps (`log_steps`, some at a time, if it wants), each epoch (`log`), each task (`end_task`)
and the end (`finish`). A resumed run logs again what came
after its checkpoint; these numbers are the same, and W&B and TensorBoard keep one of each step.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from smope.runs import write_atomically

INIT_SECONDS = 30.0  # that W&B may take to answer at the start; its own default is three times that
Matrix = Sequence[Sequence[float]]
# Configuration that a seed, a place or a service changes: runs that differ in nothing else belong to one group.
NOT_GROUPED = ("seed", "run_dir", "resume", "tracker")


class Tracker:
    """Receives what a run measures; this one keeps nothing.

    wants_steps: whether `log_steps` is of any use to it.
    """

    wants_steps: bool = False

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        """Called once before training, or before going on after `step` training steps."""

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        """Losses and learning rates of training steps `first`, `first` + 1 and so on, counted from 1 over the run."""

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """One epoch's losses and learning rate."""

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        """A task is evaluated: the accuracy matrix so far, a row a task, and the scores that follow from it."""

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        """Called once after training, also where it was broken off, with the scores so far and run.json's status."""


class NoTracker(Tracker):
    """Tracks nothing beside the run directory."""


class Guarded(Tracker):
    """Passes everything on; at the first exception it tells once and passes nothing on any more.

    Whatever a service answers must not cost a run.
    """

    def __init__(self, tracker: Tracker, tell: Callable[[str], object]) -> None:
        self.tracker: Tracker = tracker
        self._tell = tell

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        self._pass_on("start", config, run_dir, name, step)

    @property
    def wants_steps(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.tracker.wants_steps

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        self._pass_on("log_steps", rows, first)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._pass_on("log", values, step)

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        self._pass_on("end_task", matrix, scores, step)

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        self._pass_on("finish", scores, status)

    def _pass_on(self, what: str, *arguments: Any) -> None:
        try:
            getattr(self.tracker, what)(*arguments)
        except Exception as error:  # of a library or service of somebody else's
            name = type(self.tracker).__name__
            how = "did not start" if what == "start" else f"failed in {what}"
            reason = " ".join(str(error).split()) or type(error).__name__
            self._tell(f"no tracking: {name} {how} ({reason}); training goes on")
            self.tracker = Tracker()


class CsvTracker(Tracker):
    """scores.csv in the run directory: a row a task, with the mean accuracy and that on each task.

    (metrics.csv, a row an epoch, is written in any case.)
    """

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        self._path = run_dir / "scores.csv"

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        file = io.StringIO()
        tasks = len(matrix)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["after_task", "average_accuracy", *(f"task_{task + 1}" for task in range(tasks))])
        for index, row in enumerate(matrix):
            writer.writerow([index + 1, sum(row) / len(row), *row, *[""] * (tasks - len(row))])
        write_atomically(self._path, file.getvalue().encode())


class TensorBoardTracker(Tracker):
    """Event files in tensorboard/ of the run directory: `tensorboard --logdir RUN`.

    steps: whether to log every training step (step/...), not only epochs (train/...).
    """

    def __init__(self, steps: bool = True) -> None:
        self.wants_steps = steps

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run_dir, self._config = run_dir, config
        self._writer = SummaryWriter(run_dir / "tensorboard", purge_step=step + 1 if step else None)
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```", step)

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        for step, row in enumerate(rows, first):
            for key, value in row.items():
                self._writer.add_scalar(f"step/{key}", value, step)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        for key, value in _numbers(values).items():
            self._writer.add_scalar(f"train/{key}", value, step)

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        for key, value in _task_values(matrix, scores).items():
            self._writer.add_scalar(key, value, step)
        for key, picture in _pictures(matrix, self._run_dir, self._config).items():
            self._writer.add_image(key, _pixels(picture), step, dataformats="HWC")
        self._writer.flush()

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        self._writer.close()


class WandbTracker(Tracker):
    """Weights & Biases: configuration, losses and learning rates of steps (step/...) and epochs (train/...), scores of
    each task, matrix as table and heat map, expert load, and at the end the small trained state with run.json and
    config.yaml as an artefact.

    mode:     "auto": as WANDB_MODE says, else online where an API key is configured, else offline. It never prompts.
    group:    null: the name and a hash of the configuration without its seed, so that seeds stand together.
    job_type: null: the method.
    upload:   whether to log the artefact.
    steps:    whether to log every training step, not only epochs.

    A resumed run goes on in the same W&B run, whose identifier is kept in wandb.json of the run directory.
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
        """The mode asked for; "auto" follows WANDB_MODE, then whether there is a key."""
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
        self._run.log({f"train/{key}": value for key, value in _numbers(values).items()}, step=step)

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        import wandb

        columns: list[Any] = ["after task", *(f"task {task + 1}" for task in range(len(matrix)))]
        data: list[Any] = [[index + 1, *row, *[None] * (len(matrix) - len(row))] for index, row in enumerate(matrix)]
        pngs = _pictures(matrix, self._run_dir, self._config)
        pictures = {key: wandb.Image(_pixels(png)) for key, png in pngs.items()}
        table = wandb.Table(columns=columns, data=data)
        self._run.log({**_task_values(matrix, scores), "accuracy_matrix": table, **pictures}, step=step)

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
    """This run's name at W&B, made once and kept."""
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
    """Whether W&B could log in without asking: a key, or an entry of its server, maybe one's own, in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc(os.environ.get("NETRC", Path.home() / ".netrc")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def _task_values(matrix: Matrix, scores: Mapping[str, Any]) -> dict[str, float]:
    """What is known after a task, by name; tasks counted from 1."""
    row = matrix[-1]
    accuracies = {f"accuracy/task_{task + 1}": value for task, value in enumerate(row)}
    named = {f"scores/{key}": value for key, value in _numbers(scores).items()}
    return {"task": len(matrix), "average_accuracy": sum(row) / len(row), **accuracies, **named}


def _pictures(matrix: Matrix, run_dir: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """PNGs: the matrix as a heat map, and the load of experts where choices were recorded."""
    import pandas

    from smope.analysis.evidence import Evidence
    from smope.analysis.experts import block_numbers, load_of
    from smope.report.figures import heat_map, load_map
    from smope.report.ink import png

    names = range(1, len(matrix) + 1)
    frame = pandas.DataFrame(
        [[*row, *[float("nan")] * (len(matrix) - len(row))] for row in matrix],
        pandas.Index(names, name="after task"), pandas.Index(names, name="task"),
    )  # fmt: skip
    pictures = {"accuracy_matrix_map": png(heat_map("matrix", "", frame, text="").drawing)}
    evidence = Evidence(run_dir)
    if len(matrix) in evidence.recorded:
        last = evidence.after(len(matrix))
        if last.experts is not None:
            load = load_of(last.experts[last.seen], last.num_experts)
            blocks = block_numbers(config, len(load))
            pictures["expert_load"] = png(load_map("load", "", load, blocks, text="").drawing)
    return pictures


def _pixels(picture: bytes) -> Any:
    """A PNG as an array (height, width, 3)."""
    import numpy
    from PIL import Image

    return numpy.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
