"""What happened to a model since its run: an entry for each time that it learned or forgot.

An entry holds plain values: `action` ("learn" or "forget"), `parent` (hash of the content and file
name of the model before), `time` (UTC), `smope_version`. One that learned also holds `classes` (the
number of images of each class by name), `more_images` (those of them that were known before),
`images_sha256` and `accuracy` (see learning.py).

One that forgot holds the number of classes, not their names, and earlier entries lose these names:
a name may itself be what has to be forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smope.errors import UserError
from smope.run.artefact import Artefact, read_model, sha256
from smope.version import __version__


def entry(action: str, parent: Artefact, **values: Any) -> dict[str, Any]:
    """A new entry.

    Args:
        action: "learn" or "forget".
        parent: the model before.
        **values: what the action adds.
    """
    name = parent.file.path.name if parent.file else None
    return {
        "action": action,
        "parent": {"sha256": sha256(parent), "file": name},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "smope_version": __version__,
        **values,
    }


def without_names(
    lineage: Sequence[Mapping[str, Any]], class_names: Collection[str]
) -> list[dict[str, Any]]:
    """The entries without the names of some classes."""

    def cleaned(values: Any) -> Any:
        if isinstance(values, dict):
            return {name: count for name, count in values.items() if name not in class_names}
        if isinstance(values, list):
            return [name for name in values if name not in class_names]
        return values

    named = ("classes", "more_images")
    return [
        {key: cleaned(value) if key in named else value for key, value in one.items()}
        for one in lineage
    ]


def last_lesson(artefact: Artefact) -> dict[str, Any]:
    """The entry of the lesson that a model learned last; UserError if anything else came last."""
    last = artefact.lineage[-1] if artefact.lineage else None
    if not isinstance(last, dict) or last.get("action") != "learn":
        happened = "this model is as its run left it" if last is None else "it has forgotten since"
        raise UserError(f"--undo: the last thing that happened was no lesson: {happened}")
    return last


def parent_of(lesson: Mapping[str, Any]) -> Mapping[str, Any]:
    """Hash and file name of the model before a lesson, where the file holds them."""
    parent = lesson.get("parent")
    return parent if isinstance(parent, dict) else {}


def before_last_lesson(artefact: Artefact, parent: Path | None) -> Artefact:
    """The model before the last lesson, read from its own file.

    Args:
        artefact: the model after it, read from a file.
        parent: the file; None for that of the recorded name, beside the model.

    Raises:
        UserError: the last thing that happened to the model was no lesson, or the file is not
            there or not the one that it learned from.
    """
    before = parent_of(last_lesson(artefact))
    name = before.get("file")
    if parent is None:
        assert artefact.file is not None
        # only a name: a hostile file must not choose which file is read
        parent = artefact.file.path.with_name(Path(str(name)).name) if name else None
    if parent is None or not parent.is_file():
        shown = parent or "the file"
        raise UserError(
            f"--undo: {shown} is not there, and the model before the lesson is in no other file; "
            "say where it is with --parent FILE"
        )
    earlier = read_model(parent)
    if sha256(earlier) != before.get("sha256"):
        raise UserError(
            f"--undo: {parent} is not the model that the lesson was added to (sha256 "
            f"{sha256(earlier)[:12]}, wanted {str(before.get('sha256'))[:12]}); say where it is "
            "with --parent FILE"
        )
    return earlier
