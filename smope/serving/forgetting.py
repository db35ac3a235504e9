"""Withdrawing classes from a trained model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smope.errors import UserError
from smope.methods._shared.closed_form import features_of, joined
from smope.methods.base import Method, TaskSpan
from smope.run.artefact import Artefact, restore, restore_all
from smope.run.record_check import refusing_nonsense
from smope.serving.class_folders import ClassFolders
from smope.serving.growth import LearningRecord, learning_record
from smope.serving.lessons import decoded
from smope.serving.lineage import entry, without_names
from smope.serving.rebuild import new_method
from smope.streams.folder import with_drawn_split
from smope.streams.layouts.listing import Listing
from smope.streams.next_task import evaluation_images
from smope.training.loading import load, ordered_batches
from smope.training.precision import autocast, full_precision
from smope.version import __version__


def forget(
    artefact: Artefact,
    class_names: Sequence[str],
    device: torch.device,
    weights: str | None = None,
    images: ClassFolders | None = None,
) -> tuple[Artefact, list[str]]:
    """Withdraw classes: their logits, rows and statistics are removed.

    Args:
        artefact: the model; it stays as it is.
        class_names: what is forgotten.
        device: where features of `images` are computed.
        weights: where the backbone's weights are now; None for where the run read them.
        images: those that the classes were learned from. They are taken out of the sums that all
            classes share, where the method has such sums.

    Returns:
        The artefact without the classes, and what of them remains in it, for people.

    Raises:
        UserError: a class is unknown or the last one, or the images are not those that were
            learned.
    """
    labels = _labels(artefact, class_names)
    record = learning_record(artefact, str(device)) if artefact.learning or images else None
    dtype = full_precision(artefact.precision)
    method = new_method(artefact, device, dtype, "random" if images is None else weights)
    shapes = {key: value.shape for key, value in method.trained_state().items()}
    state = artefact.state
    if record is None:
        restore(method, artefact)  # refuses a state of other sizes
    else:
        restore_all(method, artefact)
        learned = None
        if images is not None and method.shares_sums:
            learned = _learned(images, (artefact.learning or {}).get("split") or {})
        for label in labels:
            features = learned and _features(method, artefact, record, label, learned)
            with refusing_nonsense():
                method.withdraw(label, features)
        state = method.trained_state()
    smaller = _without(artefact, labels)
    small = new_method(smaller, torch.device("cpu"), dtype, "random").trained_state()
    remaining = [label for label in range(artefact.num_classes) if label not in labels]
    rows = {
        key: _rows(value, shapes[key], small[key].shape, remaining) for key, value in state.items()
    }
    notes = _remains(method, record, labels, images)
    return replace(smaller, state=rows), notes


def _labels(artefact: Artefact, class_names: Sequence[str]) -> list[int]:
    known = artefact.class_names
    for name in class_names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(known[:10])}"
            raise UserError(f"CLASS={name}: the model knows no such class; {hint}")
    if len(set(class_names)) == len(known):
        raise UserError("CLASS: a model without any class is none; delete its file instead")
    return sorted(known.index(name) for name in set(class_names))


def _without(artefact: Artefact, labels: Sequence[int]) -> Artefact:
    """The artefact without some classes, but for its state."""
    names = [artefact.class_names[label] for label in labels]
    remaining = [label for label in range(artefact.num_classes) if label not in labels]
    number = {label: index for index, label in enumerate(remaining)}
    learning = artefact.learning
    if learning is not None:
        tasks = [
            {**task, "classes": [number[label] for label in task["classes"] if label in number]}
            for task in learning["tasks"]
        ]
        learning = {**learning, "tasks": tasks}
    forgotten = entry("forget", artefact, classes=len(labels))
    return replace(
        artefact,
        class_names=[name for name in artefact.class_names if name not in names],
        num_classes=len(remaining),
        learning=learning,
        lineage=[*without_names(artefact.lineage, names), forgotten],
        smope_version=__version__,
        file=None,
    )


def _rows(
    value: Tensor, shape: torch.Size, smaller: torch.Size, remaining: Sequence[int]
) -> Tensor:
    """A tensor without the rows of classes.

    Args:
        value: of the state; parts that grow with images have another size than in `shape`.
        shape: of the same tensor in a new method.
        smaller: of the same tensor in a new method for the remaining classes: where they differ
            are the axes of classes.
        remaining: labels.
    """
    for axis, sizes in enumerate(zip(shape, smaller, strict=True)):
        if sizes[0] != sizes[1]:
            value = value.index_select(axis, torch.tensor(remaining, device=value.device))
    return value.detach().cpu().clone()


def _features(
    method: Method, artefact: Artefact, record: LearningRecord, label: int, images: ClassFolders
) -> Tensor:
    """Features (n, C) in float64 of the images that a class was learned from."""
    name = artefact.class_names[label]
    files = images.files.get(name, [])
    if not files:
        raise UserError(f"{images.key}: has no folder {name}; give the images of every class")
    pixels, _ = decoded(replace(images, files={name: files}), [name])
    training = record.training(method.backbone.image_size, artefact.eval_crop)
    settings, device = record.settings, torch.device(record.settings.device)
    dtype = full_precision(artefact.precision)
    shown = evaluation_images(pixels, training)
    batches = load(shown, ordered_batches(len(shown), settings.eval_batch_size), device, dtype, 0)
    with torch.no_grad(), autocast(settings.precision, device):
        return joined(features_of(method.eval(), lambda _: batches, device))[0]


def _learned(images: ClassFolders, split: Mapping[str, Any]) -> ClassFolders:
    """The images that were learned: of a data set whose split was drawn, the training part."""
    if split.get("split") != "drawn":
        return images
    listing = Listing(images.directory, key=images.key)
    source = with_drawn_split(
        images.directory, listing, float(split["test_fraction"]), int(split["split_seed"])
    )
    if source.facts["split_hash"] != split.get("split_hash"):
        return images
    files: dict[str, list[Path]] = {name: [] for name in source.class_names}
    for target, image in zip(source.train.targets, source.train.images, strict=True):
        files[source.class_names[target]].append(Path(str(image)))
    return replace(images, files={**images.files, **files})


def _remains(
    method: Method,
    record: LearningRecord | None,
    labels: Sequence[int],
    images: ClassFolders | None,
) -> list[str]:
    """What of classes remains in a model that has forgotten them."""
    name, notes = type(method).__name__, []
    if record is None:
        return [f"what their images taught parameters that all classes of {name} share remains"]
    spans = [
        TaskSpan(index, 0, 1)
        for index, task in enumerate(record.tasks)
        if set(task.classes) & set(labels)
    ]
    if method.sums_stay:
        notes.append(
            f"their images remain part of the sums that all classes of {name} share, out of which "
            "they cannot be taken, since features have changed with later tasks"
        )
    elif method.shares_sums and images is None:
        notes.append(
            f"their images are still part of the sums that all classes of {name} share; give them "
            "with --images to take them out"
        )
    elif images is not None and not method.shares_sums:
        notes.append(f"{name} has no sums that all classes share: --images changes nothing")
    if any(method.trains(span) for span in spans):
        notes.append(
            f"what training on their images changed in other parameters of {name} remains; only a "
            "run without them undoes that"
        )
    return notes or ["nothing of them remains: the model is as if it had never seen them"]
