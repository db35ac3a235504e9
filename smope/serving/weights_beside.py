"""Weights of a backbone that lie beside a model as backbone.*, as in a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

from smope.backbones.files import SUFFIXES

STEM = "backbone"
WITHOUT_FILE = ("hub", "embedded", "random")


def weights_beside(model: Path, recorded: object) -> Path | None:
    """The file beside a model, where the one that the run read is not on this machine.

    Args:
        model: The model's file, or its folder.
        recorded: What the run read the weights from; in a file of anybody's it may be anything.
    """
    if not isinstance(recorded, str) or recorded in WITHOUT_FILE or Path(recorded).exists():
        return None
    folder = model if model.is_dir() else model.parent
    files = [folder / f"{STEM}{suffix}" for suffix in SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def weights_now(model: Path, recorded: object, given: Path | str | None = None) -> str | None:
    """Where the weights of a model's backbone are.

    Args:
        model: The model's file, or its folder.
        recorded: What the run read the weights from.
        given: What the user says.

    Returns:
        What the user says, or the file beside the model; None: where the run read them.
    """
    now = given or weights_beside(model, recorded)
    return None if now is None else str(now)
