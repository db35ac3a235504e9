"""The artefact: one safetensors file, RUN/model.safetensors, with all that classifying images needs
and nothing else.

In it: what evaluation reads of the method's state (Method.inference_state()), of a backbone that
was itself trained the weights too; how backbone, method and router were configured; the classes
seen so far; how images are shown.
Not in it: a frozen backbone's weights, which their sha256 tells, and what only learning needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Method
from smope.storage.files import write_atomically
from smope.storage.hashed_safetensors import OtherFormat, seal, unlike, unseal
from smope.storage.run_directory import RunDirectory, check_run, tasks_done
from smope.training.checkpoint import last_checkpoint

FORMAT_VERSION = 1
KIND = "smope model"


@dataclass(frozen=True)
class Artefact:
    """What classifies images, as plain values and tensors.

    backbone, method, router: groups of the run's configuration. identity: of the backbone, see
        BackboneIdentity.
    num_classes, total_tasks: of the whole stream, which the method was made for; class_names: of
        the classes seen in
    the first tasks_done of these tasks, by label; others are never predicted.
    image_size, eval_crop:    see streams/transforms.Evaluation. image_size 0: the backbone's own.
    precision:                of the run's forward passes, see TrainerSettings.
    state:                    what evaluation reads, by name; it may hold more of the method's
                              state.
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
        """Whether the backbone's weights are part of it, since they were trained."""
        return any(key.startswith("backbone.") for key in self.state)


RECORD = {
    **dict.fromkeys(("backbone", "identity", "method", "router"), dict),
    **dict.fromkeys(("num_classes", "total_tasks", "tasks_done", "image_size", "seed"), int),
    **dict.fromkeys(("precision", "config_hash", "smope_version"), str),
    "class_names": list,
    "eval_crop": float,
}


def describe(
    record: Mapping[str, Any], tasks: int, state: Mapping[str, Tensor], image_size: int
) -> Artefact:
    """What a run, known by its run.json, has learned after so many tasks, where that is `state`."""
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
    """Write what `method` has learned in a run, whose run.json is `record`, into its directory.
    OSError, with the file as it was, where it cannot be written.
    """
    artefact = describe(
        record, tasks_done(record), method.inference_state(), method.backbone.image_size
    )
    try:
        write_atomically(directory.model, to_bytes(artefact))
    except OSError as error:
        raise OSError(
            f"{directory.model}: cannot be written ({error.strerror}); make room, then resume"
        ) from error


def to_bytes(artefact: Artefact) -> bytes:
    """The content of an artefact's file."""
    return seal(
        {key: getattr(artefact, key) for key in RECORD}, artefact.state, FORMAT_VERSION, KIND
    )


def read_model(path: Path) -> Artefact:
    """What a file, or a run directory, has to classify with.

    UserError, in one line, where there is nothing.
    """
    directory = RunDirectory(path)
    if path.is_dir() and not directory.model.is_file():
        return _of_checkpoint(RunDirectory.open(path))
    check_run(path)
    try:
        record, state = unseal(
            "model", directory.model if path.is_dir() else path, FORMAT_VERSION, RECORD, KIND
        )
    except OtherFormat:
        raise
    except UserError as error:
        way_out = "give a run directory, or the model.safetensors of one"
        way_out = "remove it, and the run's last checkpoint serves" if path.is_dir() else way_out
        raise UserError(f"{error}; {way_out}") from error
    return Artefact(**{key: record[key] for key in RECORD}, state=state)


def _of_checkpoint(directory: RunDirectory) -> Artefact:
    """The same from the last checkpoint of a finished task, for runs of versions that wrote no
    artefact.
    """
    record = directory.read_record()
    checkpoint = last_checkpoint(directory, lambda *_: None, boundary=True)
    if "part" in record:
        raise UserError(
            f"RUN={directory.path}: is a trial of a search, which keeps no model; train with its "
            f"settings"
        )
    if checkpoint is None or not record:
        go_on = f"train on with: smope train resume={directory.path}"
        raise UserError(
            f"RUN={directory.path}: holds neither {directory.model.name} nor a checkpoint of a "
            f"finished task; "
            f"{'train it anew' if record.get('status') == 'finished' else go_on}"
        )
    return describe(
        record,
        checkpoint.tasks_done,
        checkpoint.state,
        record["config"]["backbone"].get("image_size") or 0,
    )


def restore(method: Method, artefact: Artefact) -> None:
    """Put an artefact's state into a method like the one that it is of, to classify and not to
    learn further.

    The method must have its final device and precision already, so that nothing is rounded on the
    way.
    """
    needed = method.inference_state()
    spare = method.trained_state().keys() - needed.keys()
    odd = unlike(needed, {key: value for key, value in artefact.state.items() if key not in spare})
    if odd:
        raise UserError(
            f"model: its state does not fit {type(method).__name__} ({odd[0]} differs, {len(odd)} "
            f"in all); use smope "
            f"{artefact.smope_version}, which wrote it"
        )
    method.load_state_dict({key: artefact.state[key] for key in needed}, strict=False)
