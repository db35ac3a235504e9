"""Checkpoints: a run at a task boundary or within a task, in one safetensors file.

hashed_safetensors.py has the format: no pickle, and a hash over all of it. The backbone is not in
it; its sha256 is, and another backbone is refused.

checkpoints/TTT-SSSSSSSS.safetensors: TTT tasks done, SSSSSSSS training steps into the next one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Method
from smope.storage.files import write_atomically
from smope.storage.hashed_safetensors import OtherFormat, seal, unlike, unseal
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream

FORMAT_VERSION = 2
KEPT = 2
NAME = re.compile(r"\d{3,}-\d{8,}\.safetensors")
RECORD = {
    "tasks_done": int, "steps": int, "backbone_sha256": str, "stream_identity": str, "history": dict, "context": dict,
    "values": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Within:
    """A place within a task: training steps taken in it, and what they left beside the method's own
    state.

    tensors: of optimizer, sums of losses, torch's generators; values: of gradient scaler and other
    generators, JSON.
    """

    steps: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """tasks_done: tasks learned and evaluated; within: None at a task boundary; history:
    training/history.py as JSON;
    context: the run's configuration and the process that computed it, JSON; state:
    Method.trained_state().
    """

    path: Path
    tasks_done: int
    backbone_sha256: str
    stream_identity: str
    history: dict[str, Any]
    state: dict[str, Tensor]
    within: Within | None = None
    context: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    directory: RunDirectory,
    method: Method,
    stream: Stream,
    tasks_done: int,
    history: Mapping[str, Any],
    within: Within | None = None,
    context: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; keep the last two, and the last task boundary. OSError, with the older
    ones as they were, where it cannot be written.
    """
    steps = within.steps if within else 0
    facts = {
        "tasks_done": tasks_done,
        "steps": steps,
        "backbone_sha256": method.backbone.identity.sha256,
        "stream_identity": stream.identity,
        "history": history,
        "context": context or {},
        "values": within.values if within else {},
    }
    groups = {"method": method.trained_state(), "within": within.tensors if within else {}}
    tensors = {
        f"{group}.{key}": value for group, state in groups.items() for key, value in state.items()
    }
    path = directory.checkpoints / f"{tasks_done:03d}-{steps:08d}.safetensors"
    try:
        write_atomically(path, seal(facts, tensors, FORMAT_VERSION))
    except OSError as error:
        raise OSError(
            f"checkpoint {path}: cannot be written ({error.strerror}); those before it are kept"
        ) from error
    paths = list_checkpoints(directory)
    boundaries = [path for path in paths if is_boundary(path)]
    for old in set(paths) - {*paths[-KEPT:], *boundaries[-1:]}:
        old.unlink()
    return path


def list_checkpoints(directory: RunDirectory) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(
        path for path in directory.checkpoints.glob("*.safetensors") if NAME.fullmatch(path.name)
    )


def is_boundary(path: Path) -> bool:
    """Whether a checkpoint, by its name, was written at the end of a task."""
    return int(path.stem.partition("-")[2]) == 0


def last_checkpoint(
    directory: RunDirectory, tell: Callable[[Path, UserError], object], *, boundary: bool = False
) -> Checkpoint | None:
    """The last checkpoint that can be read, of a task `boundary` if so asked; None where there is
    none.

    `tell` is given each later one that cannot be read, and why. UserError where all that is left is
    of another format: that is no reason to start over.
    """
    foreign = None
    for path in reversed(list_checkpoints(directory)):
        if boundary and not is_boundary(path):
            continue
        try:
            return read_checkpoint(path)
        except OtherFormat as error:
            foreign = error
            tell(path, error)
        except UserError as error:
            tell(path, error)
    if foreign is not None:
        raise foreign
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint; UserError where it is damaged or of another format."""
    facts, tensors = unseal("checkpoint", path, FORMAT_VERSION, RECORD)
    parts: dict[str, dict[str, Tensor]] = {"method": {}, "within": {}}
    for key, value in tensors.items():
        group, _, name = key.partition(".")
        parts[group][name] = value
    return Checkpoint(
        path,
        facts["tasks_done"],
        facts["backbone_sha256"],
        facts["stream_identity"],
        facts["history"],
        parts["method"],
        Within(facts["steps"], parts["within"], facts["values"]) if facts["steps"] else None,
        facts["context"],
    )


def restore(method: Method, stream: Stream, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a method on the same backbone and the same stream.

    The method must have its final device and precision already, so that nothing is rounded on the
    way.
    """
    for what, theirs, ours, key in (
        (
            "backbone",
            checkpoint.backbone_sha256,
            method.backbone.identity.sha256,
            "backbone.weights",
        ),
        ("stream", checkpoint.stream_identity, stream.identity, "stream.root"),
    ):
        if theirs != ours:
            raise UserError(
                f"checkpoint {checkpoint.path}: was trained on another {what} (sha256 "
                f"{theirs[:12]}, "
                f"here {ours[:12]}); give the same in {key}"
            )
    odd = unlike(method.trained_state(), checkpoint.state)
    if odd:
        raise UserError(
            f"checkpoint {checkpoint.path}: does not fit {type(method).__name__} ({odd[0]} "
            f"differs, {len(odd)} in "
            "all); use the version of smope in run.json"
        )
    method.load_trained_state(checkpoint.state)
