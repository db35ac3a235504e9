"""The artefact: RUN/model.safetensors, one file with what classifying images needs.

It holds the part of the method's state that evaluation reads (Method.inference_state()), including
the weights of a backbone that was trained; the configuration of backbone, method and router; the
names of the classes seen so far; and how images are resized and cropped.

It does not hold the weights of a frozen backbone, which are identified by their sha256.

What only learning needs (class statistics, sums, old keys) is in a learnable artefact alone
(trainer.keep=learnable): all of Method.trained_state(), the settings of training and the classes of
each task. `smope learn` teaches it more classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Method
from smope.run.model_card import model_card
from smope.run.record_check import refusing_nonsense, senseless
from smope.storage.commands import resume_command
from smope.storage.files import unwritten, write_new, write_together
from smope.storage.hashed_safetensors import OtherFormat, content_hash, pack, unlike, unpack
from smope.storage.run_directory import RunDirectory, check_run, model_file, tasks_done
from smope.training.checkpoint import last_checkpoint

MODEL_FORMAT_VERSION = 1
KIND = "smope model"
LEARNABLE = "learnable"  # of trainer.keep


@dataclass(frozen=True)
class ArtefactFile:
    """Where an artefact was read from, and the hash of its content."""

    path: Path
    sha256: str


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
        learning: what learning more classes needs beside the state; None where the artefact is not
            learnable. See `_learning`.
        lineage: what was learned and forgotten since the run, oldest first: see
            serving/lineage.py.
        file: where it was read from; None for one that is in no file yet.
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
    learning: dict[str, Any] | None = None
    lineage: list[dict[str, Any]] = field(default_factory=list)
    file: ArtefactFile | None = None

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
# Written where there is something to write, so that other artefacts stay as they were.
OPTIONAL_TYPES = {"learning": dict, "lineage": list}


def describe(
    record: Mapping[str, Any],
    tasks: int,
    state: Mapping[str, Tensor],
    image_size: int,
    learnable: bool = False,
) -> Artefact:
    """The artefact of a run.

    Args:
        record: its run.json.
        tasks: how many tasks are learned.
        state: what evaluation reads of the method after these tasks; all of it if `learnable`.
        image_size: pixels of a side; 0: the backbone's own.
        learnable: whether more classes may be learned from it.

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
        learning=_learning(record, tasks) if learnable else None,
    )


def _learning(record: Mapping[str, Any], tasks: int) -> dict[str, Any]:
    """What learning reads of a run beside the method's state: the settings of training, with every
    `auto` resolved; how training images are augmented; labels and number of training images of each
    task; and the split, if it was drawn.
    """
    config = record["config"]
    split = {
        key: value
        for key, value in record.get("stream", {}).items()
        if key in ("split", "split_seed", "test_fraction", "split_hash")
    }
    return {
        "trainer": config["trainer"],
        "augmentation": {key: config["stream"][key] for key in ("crop_scale", "flip")},
        "tasks": [
            {"classes": list(task["classes"]), "images": task["train"]}
            for task in record["tasks"][:tasks]
        ],
        "split": split,
    }


def write_model(directory: RunDirectory, method: Method, record: Mapping[str, Any]) -> None:
    """Write model.safetensors, and its model card.

    Args:
        directory: the run.
        method: what was trained.
        record: the content of run.json.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    learnable = record["config"]["trainer"].get("keep") == LEARNABLE
    state = method.trained_state() if learnable else method.inference_state()
    artefact = describe(record, tasks_done(record), state, method.backbone.image_size, learnable)
    try:
        write_together(
            {
                directory.model: to_bytes(artefact),
                directory.model_card: model_card(artefact, record).encode(),
            }
        )
    except OSError as error:
        raise unwritten(directory.model, error, ", then resume") from error


def write_artefact(artefact: Artefact, path: Path) -> Artefact:
    """Write an artefact to a new file; see `storage.files.write_new`.

    Args:
        artefact: what is written.
        path: of the file.

    Returns:
        The artefact as it is read from there.

    Raises:
        FileExistsError: there is a file already.
        OSError: it cannot be written; nothing is left behind.
    """
    record = _record(artefact)
    content = content_hash(record, artefact.state)
    try:
        write_new(path, pack(record, artefact.state, MODEL_FORMAT_VERSION, KIND, content))
    except FileExistsError as error:
        raise FileExistsError(
            f"{path}: exists, and nothing is overwritten; name a new file"
        ) from error
    except OSError as error:
        raise unwritten(path, error) from error
    return replace(artefact, file=ArtefactFile(path, content))


def megabytes(state: Mapping[str, Tensor]) -> str:
    """The size of tensors, for people."""
    return f"{sum(value.nbytes for value in state.values()) / 1e6:.1f} MB"


def size_line(method: Method, keep: str) -> str:
    """The sizes of both kinds of artefact, for people.

    Args:
        method: what was trained.
        keep: trainer.keep, the kind that was written.
    """
    small, large = megabytes(method.inference_state()), megabytes(method.trained_state())
    if keep == LEARNABLE:
        return f"the model can learn more classes: {large}; to classify alone it needs {small}"
    return (
        f"the model classifies: {small}; to learn more classes (trainer.keep={LEARNABLE}) {large}"
    )


def to_bytes(artefact: Artefact) -> bytes:
    """The content of an artefact's file."""
    return pack(_record(artefact), artefact.state, MODEL_FORMAT_VERSION, KIND)


def sha256(artefact: Artefact) -> str:
    """The hash of an artefact's content (hex), which its file has or would have."""
    if artefact.file is not None:
        return artefact.file.sha256
    return content_hash(_record(artefact), artefact.state)


def _record(artefact: Artefact) -> dict[str, Any]:
    optional = {key: getattr(artefact, key) for key in OPTIONAL_TYPES}
    return {
        **{key: getattr(artefact, key) for key in RECORD_TYPES},
        **{key: value for key, value in optional.items() if value},
    }


def read_model(path: Path) -> Artefact:
    """Read the artefact of a file or a run directory; UserError if there is none."""
    directory = RunDirectory(path)
    if path.is_dir() and not directory.model.is_file():
        return of_checkpoint(RunDirectory.open(path))
    check_run(path)
    file = model_file(path)
    try:
        contents = unpack("model", file, MODEL_FORMAT_VERSION, RECORD_TYPES, KIND, OPTIONAL_TYPES)
    except OtherFormat:
        raise
    except UserError as error:
        if path.is_dir():
            way_out = "remove it, and the run's last checkpoint serves"
        else:
            way_out = "give a run directory, or the model.safetensors of one"
        raise UserError(f"{error}; {way_out}") from error
    wrong = list(senseless(contents.record))
    if wrong:
        raise UserError(
            f"model {file}: its record makes no sense ({', '.join(wrong)}); get the file from "
            "where it was trained"
        )
    keys = [key for key in (*RECORD_TYPES, *OPTIONAL_TYPES) if key in contents.record]
    return Artefact(
        **{key: contents.record[key] for key in keys},
        state=contents.tensors,
        file=ArtefactFile(file, contents.sha256),
    )


def of_checkpoint(directory: RunDirectory) -> Artefact:
    """The learnable artefact of a run, from its last checkpoint at the end of a task.

    UserError where there is none.
    """
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
        learnable=True,
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
    _refuse_unlike(method, needed, state, artefact)
    method.load_state_dict({key: artefact.state[key] for key in needed}, strict=False)


def restore_all(method: Method, artefact: Artefact) -> None:
    """Put all of a learnable artefact's state into a method, which may have more classes and tasks.

    Tensors that grow with classes or tasks keep what they held in front; behind it they stay as the
    method was made. The method must have its final device and precision already.

    Args:
        method: made with the artefact's configuration.
        artefact: the state.

    Raises:
        UserError: the state does not fit the method.
    """
    fresh = method.trained_state()
    with refusing_nonsense():
        state = {
            key: _grown(value, fresh[key]) if key in fresh else value
            for key, value in artefact.state.items()
        }
        state = method.adopted(state)
        _refuse_unlike(method, method.trained_state(), state, artefact)
        method.load_trained_state(state)


def _grown(value: Tensor, fresh: Tensor) -> Tensor:
    """`value` in the front corner, `fresh` behind it, and zeros where neither has anything."""
    if value.shape == fresh.shape or value.ndim != fresh.ndim:
        return value
    shape = [max(sizes) for sizes in zip(value.shape, fresh.shape, strict=True)]
    grown = value.new_zeros(shape)
    for part in (fresh.to(value), value):
        grown[tuple(slice(size) for size in part.shape)] = part
    return grown


def _refuse_unlike(
    method: Method, needed: Mapping[str, Tensor], state: Mapping[str, Tensor], artefact: Artefact
) -> None:
    differing = unlike(needed, state)
    if differing:
        raise UserError(
            f"model: its state does not fit {type(method).__name__} ({differing[0]} differs, "
            f"{len(differing)} in all); use smope {artefact.smope_version}, which wrote it"
        )
