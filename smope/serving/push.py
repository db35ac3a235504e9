"""What `smope push` puts on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from smope.backbones.files import weight_file
from smope.backbones.weights import file_sha256
from smope.errors import UserError
from smope.run.artefact import Artefact, to_bytes
from smope.run.model_card import model_card
from smope.serving.hub import CARD, MODEL, SCHEME
from smope.serving.weights_beside import STEM, WITHOUT_FILE, weights_now
from smope.storage.run_directory import RunDirectory, tasks_done


def repository_files(
    model: Path,
    artefact: Artefact,
    repository: str,
    *,
    with_backbone: bool = False,
    weights: str | None = None,
) -> dict[str, Path | bytes]:
    """The files of a repository by name.

    Args:
        model: A run directory, or a model.safetensors.
        artefact: What was read from it.
        repository: OWNER/NAME.
        with_backbone: Whether weights that are nowhere else to be had are among them.
        weights: Where they are now; None: where the run read them.

    Raises:
        UserError: The weights cannot be read.
    """
    public = _without_folders(artefact)
    directory = RunDirectory(model if model.is_dir() else model.parent)
    card = model_card(public, _record(directory, artefact), f"{SCHEME}{repository}")
    files: dict[str, Path | bytes] = {MODEL: to_bytes(public), CARD: card.encode()}
    if with_backbone and needs_weights(artefact):
        path = _weights(model, artefact, weights)
        files[f"{STEM}{path.suffix}"] = path
    return files


def needs_weights(artefact: Artefact) -> bool:
    """Whether the backbone's weights come from a file, which others may not have."""
    return not artefact.has_backbone and artefact.backbone["weights"] not in WITHOUT_FILE


def _without_folders(artefact: Artefact) -> Artefact:
    """The same model, which names the file of its weights but not the folders of a machine."""
    if not needs_weights(artefact):
        return artefact
    name = Path(artefact.backbone["weights"]).name
    return replace(
        artefact,
        file=None,
        backbone=artefact.backbone | {"weights": name},
        identity=artefact.identity | {"source": name},
    )


def _record(directory: RunDirectory, artefact: Artefact) -> Mapping[str, Any] | None:
    """run.json beside a model, if its results are those of the model."""
    record = directory.read_record()
    same = record.get("config_hash") == artefact.config_hash
    is_same = same and record["class_names"][: len(artefact.class_names)] == artefact.class_names
    return record if is_same and tasks_done(record) == artefact.tasks_done else None


def _weights(model: Path, artefact: Artefact, weights: str | None) -> Path:
    recorded = artefact.backbone["weights"]
    path = weight_file(Path(weights_now(model, recorded, weights) or recorded).expanduser())
    if file_sha256(path) != artefact.identity["sha256"]:
        raise UserError(
            f"weights={path}: is not what the model was trained on; give the file of "
            f"{artefact.identity['name']} that the run read from {artefact.identity['source']}"
        )
    return path
