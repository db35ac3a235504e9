"""ImageNet-R's published split: two YAML files, each with the images (`data`) and their class ids
(`targets`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from smope.errors import UserError

FILES = {"train": "imagenet-r_train.yaml", "test": "imagenet-r_test.yaml"}
# with the C library the 30,000 images are read in a third of a second, without it in four
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class SplitLists:
    """splits: "train" or "test" by "<wnid>/<file>". wnids: in the order of the lists' class ids."""

    splits: dict[str, str]
    wnids: list[str]

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of what both files say, whatever their order and the prefixes of paths."""
        images = sorted(f"{split}\t{path}\n" for path, split in self.splits.items())
        classes = [f"{wnid}\n" for wnid in self.wnids]
        return hashlib.sha256("".join([*images, *classes]).encode()).hexdigest()


def read_lists(directory: Path) -> SplitLists:
    """Read both lists. Paths count from <wnid>/<file> on, with / or \\ between the two.

    UserError names stream.split_lists where a file is missing, unreadable or no such list, where an
    image is listed twice, and where the class ids are not 0, 1, ..., one for each wnid.
    """
    splits: dict[str, str] = {}
    class_ids: dict[str, int] = {}
    for split, name in FILES.items():
        for path, target in _entries(directory, name):
            wnid, image_path = _image_path(directory, name, path)
            if type(target) is not int:
                raise _refused(
                    directory,
                    f"{name} gives {image_path} the target {target!r}, which is no whole number",
                )
            if image_path in splits:
                both = f"in {name} twice" if splits[image_path] == split else "in both lists"
                raise _refused(directory, f"{image_path} is {both}; each image may be listed once")
            splits[image_path] = split
            if class_ids.setdefault(wnid, target) != target:
                raise _refused(
                    directory,
                    f"{wnid} has targets {class_ids[wnid]} and {target}; each class may have one",
                )
    wnids = sorted(class_ids, key=lambda wnid: class_ids[wnid])
    if [class_ids[wnid] for wnid in wnids] != list(range(len(wnids))):
        raise _refused(
            directory,
            f"the targets of {len(wnids)} classes must be the numbers 0 to {len(wnids) - 1}, one "
            "each",
        )
    return SplitLists(splits, wnids)


def holds_lists(directory: Path) -> bool:
    """True if one of the files exists."""
    return any((directory / name).is_file() for name in FILES.values())


def _refused(directory: Path, problem: str) -> UserError:
    return UserError(
        f"stream.split_lists={directory}: {problem}; it must be a folder with the published "
        f"{' and '.join(FILES.values())} (null draws a split where neither of them lies in "
        "stream.root)"
    )


def _entries(directory: Path, name: str) -> zip[tuple[Any, Any]]:
    if not (directory / name).is_file():
        problem = "it is a file" if directory.is_file() else f"no {name} is there"
        raise _refused(directory, problem)
    try:
        # bytes: the reader knows the marks that editors on Windows put at the start
        table = yaml.load((directory / name).read_bytes(), Loader=LOADER)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _refused(directory, f"cannot read {name} ({' '.join(str(error).split())})") from error
    lists: Sequence[Any] = [
        table.get(key) if isinstance(table, dict) else None for key in ("data", "targets")
    ]
    if not all(isinstance(column, list) for column in lists) or len(lists[0]) != len(lists[1]):
        raise _refused(directory, f"{name} has no lists data and targets of the same length")
    return zip(*lists, strict=True)


def _image_path(directory: Path, name: str, path: Any) -> tuple[str, str]:
    """The wnid and "<wnid>/<file>" of a listed path."""
    parts = re.split(r"[/\\]+", path)[-2:] if isinstance(path, str) else []
    if len(parts) != 2 or not all(parts):
        raise _refused(directory, f"{name} lists {path!r}, which does not end in <wnid>/<file>")
    return parts[0], "/".join(parts)
