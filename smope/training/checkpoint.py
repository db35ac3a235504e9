"""The checkpoint file: a run at the end of a task or within one, in one safetensors file.

checkpoints/TTT-SSSSSSSS.safetensors: TTT tasks are done, and SSSSSSSS training steps of the next.

storage/hashed_safetensors.py has the format: no pickle, and a hash over all of it. The backbone is
not part of the file. Its sha256 is, and another backbone is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Method
from smope.storage.files import write_atomically
from smope.storage.hashed_safetensors import OtherFormat, pack, unlike, unpack
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream

CHECKPOINT_FORMAT_VERSION = 2
CHECKPOINTS_KEPT = 2
FILE_NAME = re.compile(r"\d{3,}-\d{8,}\.safetensors")
RECORD_TYPES = {
    "tasks_done": int,
    "steps": int,
    "backbone_sha256": str,
    "stream_identity": str,
    "history": dict,
    "context": dict,
    "values": dict,
}


@dataclass(frozen=True)
class Within:
    """The state within a task, beside the method's own.

    Attributes:
        steps: training steps taken in the task.
        tensors: of the optimizer, the sums of losses and torch's generators.
        values: of the gradient scaler and the other generators, as JSON.
    """

    steps: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        tasks_done: tasks learned and evaluated.
        history: training/history.py as JSON.
        state: Method.trained_state().
        within: the state within the next task; None at the end of a task.
        context: the run's configuration and the process that computed it, as JSON.
    """

    path: Path
    tasks_done: int
    backbone_sha256: str
    stream_identity: str
    history: dict[str, Any]
    state: dict[str, Tensor]
    within: Within | None = None
    context: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Training steps taken in the next task."""
        return self.within.steps if self.within else 0


def save_checkpoint(
    directory: RunDirectory,
    method: Method,
    stream: Stream,
    tasks_done: int,
    history: Mapping[str, Any],
    within: Within | None = None,
    context: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, then delete all but the last two and the last one at the end of a task.

    Args:
        directory: the run.
        method: what is trained.
        stream: what it is trained on.
        tasks_done: tasks learned and evaluated.
        history: training/history.py as JSON.
        within: the state within the next task; None at the end of a task.
        context: further JSON to keep.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written; older checkpoints are untouched.
    """
    steps = within.steps if within else 0
    record = {
        "tasks_done": tasks_done,
        "steps": steps,
        "backbone_sha256": method.backbone.identity.sha256,
        "stream_identity": stream.identity,
        "history": history,
        "context": context or {},
        "values": within.values if within else {},
    }
    tensors = {f"method.{key}": value for key, value in method.trained_state().items()}
    if within is not None:
        tensors |= {f"within.{key}": value for key, value in within.tensors.items()}
    path = directory.checkpoints / f"{tasks_done:03d}-{steps:08d}.safetensors"
    try:
        write_atomically(path, pack(record, tensors, CHECKPOINT_FORMAT_VERSION))
    except OSError as error:
        raise OSError(
            f"checkpoint {path}: cannot be written ({error.strerror}); those before it are kept"
        ) from error
    _delete_old(list_checkpoints(directory))
    return path


def _delete_old(paths: list[Path]) -> None:
    boundaries = [path for path in paths if is_boundary(path)]
    for old in set(paths) - {*paths[-CHECKPOINTS_KEPT:], *boundaries[-1:]}:
        old.unlink()


def list_checkpoints(directory: RunDirectory) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folder = directory.checkpoints
    # not Path.glob, which is silent about a folder that cannot be read
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(folder / name for name in names if FILE_NAME.fullmatch(name))


def is_boundary(path: Path) -> bool:
    """Whether a checkpoint, by its name, was written at the end of a task."""
    return int(path.stem.partition("-")[2]) == 0


def last_checkpoint(
    directory: RunDirectory,
    on_unreadable: Callable[[Path, UserError], object],
    *,
    boundary: bool = False,
) -> Checkpoint | None:
    """The last checkpoint of a run that can be read.

    Args:
        directory: the run.
        on_unreadable: called with each later checkpoint that cannot be read, and the reason.
        boundary: look only at those written at the end of a task.

    Returns:
        The checkpoint; None where there is none.

    Raises:
        UserError: all that is left is of another format, which is no reason to start over.
    """
    other_format = None
    for path in reversed(list_checkpoints(directory)):
        if boundary and not is_boundary(path):
            continue
        try:
            return read_checkpoint(path)
        except OtherFormat as error:
            other_format = error
            on_unreadable(path, error)
        except UserError as error:
            on_unreadable(path, error)
    if other_format is not None:
        raise other_format
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint; UserError where it is damaged or of another format."""
    record, tensors, _ = unpack("checkpoint", path, CHECKPOINT_FORMAT_VERSION, RECORD_TYPES)
    groups: dict[str, dict[str, Tensor]] = {"method": {}, "within": {}}
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        groups[group][name] = value
    within = None
    if record["steps"]:
        within = Within(record["steps"], groups["within"], record["values"])
    return Checkpoint(
        path,
        record["tasks_done"],
        record["backbone_sha256"],
        record["stream_identity"],
        record["history"],
        groups["method"],
        within,
        record["context"],
    )


def restore(method: Method, stream: Stream, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a method.

    The method must have its final device and precision already, so that nothing is rounded on the
    way.

    Args:
        method: made like the one that was trained, on the same backbone.
        stream: the stream that it was trained on.
        checkpoint: the state.

    Raises:
        UserError: the checkpoint is of another backbone, stream or method.
    """
    backbone = method.backbone.identity.sha256
    _check_same(checkpoint, "backbone", checkpoint.backbone_sha256, backbone, "backbone.weights")
    _check_same(checkpoint, "stream", checkpoint.stream_identity, stream.identity, "stream.root")
    state = method.adopted(checkpoint.state)
    differing = unlike(method.trained_state(), state)
    if differing:
        raise UserError(
            f"checkpoint {checkpoint.path}: does not fit {type(method).__name__} "
            f"({differing[0]} differs, {len(differing)} in all); use the version of smope in "
            f"run.json"
        )
    method.load_trained_state(state)


def _check_same(checkpoint: Checkpoint, what: str, theirs: str, ours: str, key: str) -> None:
    if theirs != ours:
        raise UserError(
            f"checkpoint {checkpoint.path}: was trained on another {what} (sha256 {theirs[:12]}, "
            f"here {ours[:12]}); give the same in {key}"
        )
