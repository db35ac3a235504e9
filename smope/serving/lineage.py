"""What happened to a model since its run: an entry for each time that it learned or forgot.

An entry holds plain values: `action` ("learn" or "forget"), `parent` (hash of the content and file
name of the model before), `time` (UTC), `smope_version`. One that learned also holds `classes` (the
number of images of each class by name), `more_images` (those of them that were known before),
`images_sha256` and `old_classes`, `new_classes` (accuracies, see learning.py).

One that forgot holds the number of classes, not their names, and earlier entries lose these names:
a name may itself be what has to be forgotten.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from smope.run.artefact import Artefact, sha256
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
    lineage: list[dict[str, Any]], class_names: Collection[str]
) -> list[dict[str, Any]]:
    """The entries without the names of some classes."""
    return [
        {
            **one,
            **{
                key: type(one[key])(
                    {name: count for name, count in one[key].items() if name not in class_names}
                    if isinstance(one[key], dict)
                    else [name for name in one[key] if name not in class_names]
                )
                for key in ("classes", "more_images")
                if isinstance(one.get(key), dict | list)
            },
        }
        for one in lineage
    ]
