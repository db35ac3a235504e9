"""Checkpoints: what a method learned or remembers, with the run's record so far, in one safetensors file.

No pickle: reading one runs no code. The backbone is not in it; its sha256 is, and another backbone is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Method
from smope.runs import FORMAT_VERSION, RunDirectory, write_atomically
from smope.streams.base import Stream

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """tasks_done: tasks learned; history: training/history.py as JSON; state: Method.trained_state()."""

    path: Path
    tasks_done: int
    backbone_sha256: str
    stream_identity: str
    history: dict[str, Any]
    state: dict[str, Tensor]


def save_checkpoint(
    directory: RunDirectory, method: Method, stream: Stream, tasks_done: int, history: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of a task boundary and keep the last two."""
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "tasks_done": str(tasks_done),
        "backbone_sha256": method.backbone.identity.sha256,
        "stream_identity": stream.identity,
        "history": json.dumps(history),
    }
    state = {key: value.detach().cpu().contiguous() for key, value in method.trained_state().items()}
    path = directory.checkpoints / f"task-{tasks_done:03d}.safetensors"
    write_atomically(path, save(state, metadata))
    for old in list_checkpoints(directory)[:-KEPT]:
        old.unlink()
    return path


def list_checkpoints(directory: RunDirectory) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(directory.checkpoints.glob("task-*.safetensors"))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint; UserError where it is damaged or of another format."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        checkpoint = Checkpoint(
            path,
            int(metadata["tasks_done"]),
            metadata["backbone_sha256"],
            metadata["stream_identity"],
            json.loads(metadata["history"]),
            state,
        )
    except Exception as error:
        raise UserError(
            f"checkpoint {path}: cannot be read ({type(error).__name__}: {error}); delete it to use the one before"
        ) from error
    if metadata["format_version"] != str(FORMAT_VERSION):
        raise UserError(
            f"checkpoint {path}: has format version {metadata['format_version']}, this smope reads {FORMAT_VERSION}; "
            "use the version of smope in run.json"
        )
    return checkpoint


def restore(method: Method, stream: Stream, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a method on the same backbone and the same stream.

    The method must have its final device and precision already, so that nothing is rounded on the way.
    """
    for what, theirs, ours, key in (
        ("backbone", checkpoint.backbone_sha256, method.backbone.identity.sha256, "backbone.weights"),
        ("stream", checkpoint.stream_identity, stream.identity, "stream.root"),
    ):
        if theirs != ours:
            raise UserError(
                f"checkpoint {checkpoint.path}: was trained on another {what} (sha256 {theirs[:12]}, "
                f"here {ours[:12]}); give the same in {key}"
            )
    method.load_trained_state(checkpoint.state)
