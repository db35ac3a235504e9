"""The artefact: RUN/model.safetensors, one file with what classifying images needs.

It holds the part of the method's state that evaluation reads (Method.inference_state()), including
the weights of a backbone that was trained; the configuration of backbone, method and router; the
names of the classes seen so far; and how images are resized and cropped.

It does not hold the weights of a frozen backbone, which are identified by their sha256, nor what
only learning needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Method
from smope.run.model_card import model_card
from smope.storage.commands import resume_command
from smope.storage.files import write_atomically
from smope.storage.hashed_safetensors import OtherFormat, pack, unlike, unpack
from smope.storage.run_directory import RunDirectory, check_run, tasks_done
from smope.training.checkpoint import last_checkpoint

MODEL_FORMAT_VERSION = 1
KIND = "smope model"


@dataclass(frozen=True)
class Artefact:
    """What classifies images, as plain values and tensors.

    Attributes:
        backbone: the group of the run's configuration.
        identity: of the backbone; see BackboneIdentity.
        method: the group of the run's configuration.
        router: the group of the run's configuration.
        num_classes: of the whole stream, which the method was made for.
        total_tasks: of the whole stream.
        class_names: of the classes seen in the first `tasks_done` tasks, by label. Other classes
            are never predicted.
        tasks_done: tasks learned.
        image_size: pixels of a side; 0: the backbone's own. See streams/pixels/transforms.py.
        eval_crop: see streams/pixels/transforms.py.
        precision: of the run's forward passes; see TrainerSettings.
        state: what evaluation reads, by name; it may hold more of the method's state.
    """

    backbone: dict[str, Any]
    identity: dict[str, Any]
    method: dict[str, Any]
    router: dict[str, Any]
    num_classes: int
    total_tasks: int
    class_names: list[str]
    tasks_done: int
    image_size: int
    eval_crop: float
    precision: str
    seed: int
    config_hash: str
    smope_version: str
    state: dict[str, Tensor]

    @property
    def has_backbone(self) -> bool:
        """Whether it holds the weights of the backbone, because they were trained."""
        return any(key.startswith("backbone.") for key in self.state)


RECORD_TYPES = {
    **dict.fromkeys(("backbone", "identity", "method", "router"), dict),
    **dict.fromkeys(("num_classes", "total_tasks", "tasks_done", "image_size", "seed"), int),
    **dict.fromkeys(("precision", "config_hash", "smope_version"), str),
    "class_names": list,
    "eval_crop": float,
}


def describe(
    record: Mapping[str, Any], tasks: int, state: Mapping[str, Tensor], image_size: int
) -> Artefact:
    """The artefact of a run.

    Args:
        record: its run.json.
        tasks: how many tasks are learned.
        state: what evaluation reads of the method after these tasks.
        image_size: pixels of a side; 0: the backbone's own.

    Returns:
        The artefact.
    """
    config = record["config"]
    seen = 1 + max(label for task in record["tasks"][:tasks] for label in task["classes"])
    return Artefact(
        **{group: config[group] for group in ("backbone", "method", "router")},
        identity=record["backbone"],
        num_classes=len(record["class_names"]),
        total_tasks=len(record["tasks"]),
        class_names=record["class_names"][:seen],
        tasks_done=tasks,
        image_size=image_size,
        eval_crop=float(config["stream"]["eval_crop"]),
        precision=config["trainer"]["precision"],
        seed=record["seed"],
        config_hash=record["config_hash"],
        smope_version=record["versions"]["smope"],
        state=dict(state),
    )


def write_model(directory: RunDirectory, method: Method, record: Mapping[str, Any]) -> None:
    """Write model.safetensors, and its model card.

    Args:
        directory: the run.
        method: what was trained.
        record: the content of run.json.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    artefact = describe(
        record, tasks_done(record), method.inference_state(), method.backbone.image_size
    )
    try:
        write_atomically(directory.model, to_bytes(artefact))
        write_atomically(directory.model_card, model_card(artefact, record).encode())
    except OSError as error:
        raise OSError(
            f"{directory.model}: cannot be written ({error.strerror}); make room, then resume"
        ) from error


def to_bytes(artefact: Artefact) -> bytes:
    """The content of an artefact's file."""
    return pack(
        {key: getattr(artefact, key) for key in RECORD_TYPES},
        artefact.state,
        MODEL_FORMAT_VERSION,
        KIND,
    )


def read_model(path: Path) -> Artefact:
    """Read the artefact of a file or a run directory; UserError if there is none."""
    directory = RunDirectory(path)
    if path.is_dir() and not directory.model.is_file():
        return _of_checkpoint(RunDirectory.open(path))
    check_run(path)
    file = directory.model if path.is_dir() else path
    try:
        record, state = unpack("model", file, MODEL_FORMAT_VERSION, RECORD_TYPES, KIND)
    except OtherFormat:
        raise
    except UserError as error:
        if path.is_dir():
            way_out = "remove it, and the run's last checkpoint serves"
        else:
            way_out = "give a run directory, or the model.safetensors of one"
        raise UserError(f"{error}; {way_out}") from error
    return Artefact(**{key: record[key] for key in RECORD_TYPES}, state=state)


def _of_checkpoint(directory: RunDirectory) -> Artefact:
    """The artefact of a run from an old version that wrote none: from its last checkpoint."""
    record = directory.read_record()
    checkpoint = last_checkpoint(directory, lambda *_: None, boundary=True)
    if "part" in record:
        raise UserError(
            f"RUN={directory.path}: is a trial of a search, which keeps no model; train with its "
            f"settings"
        )
    if checkpoint is None or not record:
        way_out = f"continue with: {resume_command(directory.path)}"
        if record.get("status") == "finished":
            way_out = "train it anew"
        raise UserError(
            f"RUN={directory.path}: holds neither {directory.model.name} nor a checkpoint of a "
            f"finished task; {way_out}"
        )
    return describe(
        record,
        checkpoint.tasks_done,
        checkpoint.state,
        record["config"]["backbone"].get("image_size") or 0,
    )


def restore(method: Method, artefact: Artefact) -> None:
    """Put an artefact's state into a method, to classify and not to learn further.

    The method must have its final device and precision already, so that nothing is rounded on the
    way.

    Args:
        method: made with the artefact's configuration.
        artefact: the state.

    Raises:
        UserError: the state does not fit the method.
    """
    needed = method.inference_state()
    unused = method.trained_state().keys() - needed.keys()
    state = {key: value for key, value in artefact.state.items() if key not in unused}
    differing = unlike(needed, state)
    if differing:
        raise UserError(
            f"model: its state does not fit {type(method).__name__} ({differing[0]} differs, "
            f"{len(differing)} in all); use smope {artefact.smope_version}, which wrote it"
        )
    method.load_state_dict({key: artefact.state[key] for key in needed}, strict=False)
