"""Data sets whose classes are known beforehand: class folders and the Hub's parquet files are held
against them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from smope.streams import folder
from smope.streams.layouts import parquet
from smope.streams.layouts.parquet import Refused
from smope.streams.source import ImageSet

ClassId = Callable[[str], int | None]
"""The id of the class that a folder or a parquet file calls by a name; None where there is no such
class.
"""
_log = logging.getLogger(__name__)


def holds(directory: Path, class_id: ClassId) -> bool:
    """Whether `directory` is there and has a folder that is called like one of the classes."""
    if not os.path.isdir(directory) or not os.access(directory, folder.READABLE):
        return False
    return any(class_id(name) is not None for name in folder.subdirectories(directory))


def from_folders(
    directories: Mapping[str, Path], class_id: ClassId, refused: Refused
) -> dict[str, ImageSet]:
    """The images in the class folders of each split's directory; folders without image files do
    not count.
    """
    splits = {}
    for split, directory in directories.items():
        if not directory.is_dir():
            raise refused(f"{directory} is missing")
        targets, paths, unknown = [], [], []
        for name in folder.subdirectories(directory):
            files, target = folder.image_files(directory / name), class_id(name)
            if target is not None:
                targets += [target] * len(files)
                paths += files
            elif files:
                unknown.append(name)
        if unknown:
            raise refused(
                f"{directory} has images in folders that are none of the data set's classes: "
                f"{folder.shortened(unknown)} (stream=folder takes any classes)"
            )
        splits[split] = ImageSet(targets, paths)
    return splits


def from_parquet(
    root: str, shards: Mapping[str, Sequence[Path]], class_id: ClassId, refused: Refused
) -> dict[str, ImageSet]:
    """The rows of each split's files, in memory as they are encoded. Class ids are those of the
    names that the files give to their labels: copies of a data set number its classes differently.
    """
    for split in [split for split, paths in shards.items() if not paths]:
        other = next(path for paths in shards.values() for path in paths)
        raise refused(f"{other.parent} has {other.name} but no parquet file of {split} images")
    splits = {}
    for split, paths in shards.items():
        rows = parquet.read(root, paths, {"label": int}, refused)
        names = dict(enumerate(rows.class_names or []))
        ids = {
            label: class_id(names[label]) if label in names else None for label in set(rows.labels)
        }
        wrong = [label for label, target in sorted(ids.items()) if target is None]
        if wrong:
            called = f"calls {names[wrong[0]]!r}" if wrong[0] in names else "does not name"
            raise refused(
                f"{paths[0]} has the label {wrong[0]}, which the Hub's metadata in it {called}; "
                f"each must be named as "
                "one of the data set's classes"
            )
        targets = [target for label in rows.labels if (target := ids[label]) is not None]
        splits[split] = ImageSet(targets, rows.images, rows.names)
    return splits


def check(
    root: str,
    splits: Mapping[str, ImageSet],
    class_names: Sequence[str],
    published: Mapping[str, int],
    refused: Refused,
) -> None:
    """Made by `refused`, the error of a split without images of some class. A number of images in a
    split that is not the `published` one is only warned of: users make smaller copies on purpose.
    """
    for split, images in splits.items():
        there = set(images.targets)
        absent = [name for target, name in enumerate(class_names) if target not in there]
        if absent:
            raise refused(
                f"it has {split} images of {len(there)} classes instead of {len(class_names)}, "
                f"none of "
                f"{folder.shortened(absent)} (if it was unpacked only in part, unpack it again; "
                f"stream=folder takes "
                "any classes)"
            )
        if len(images) != published[split]:
            _log.warning(
                "stream.root=%s has %s %s images instead of the published %s",
                *(root, f"{len(images):,}", split, f"{published[split]:,}"),
            )
