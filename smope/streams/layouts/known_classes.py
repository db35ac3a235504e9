"""Data sets with known classes, as class folders and as parquet files of the Hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smope.streams import folder
from smope.streams.archives.official_dataset import Layout, MakeError, OfficialDataset
from smope.streams.layouts import parquet
from smope.streams.layouts.listing import image_files, subdirectories
from smope.streams.source import ImageSet, Source

ClassId = Callable[[str], int | None]
"""The id of the class that a folder or a parquet file calls by a name; None for an unknown name."""
_log = logging.getLogger(__name__)


class Splits(NamedTuple):
    """Training and test images; `test_name` is what the test folder or files are called."""

    train: ImageSet
    test: ImageSet
    test_name: str


@dataclass(frozen=True)
class KnownClassesDataset(OfficialDataset[Splits]):
    """class_names: by class id. published: how many images each split officially has."""

    class_names: tuple[str, ...]
    published: Mapping[str, int]

    def load(self, root: str, download: bool) -> tuple[Source, str]:
        """The source and the name of its test images. UserError, also where a class has no images;
        a number of images that is not the published one is only logged, since users make smaller
        copies on purpose.
        """
        splits = self.read(root, download)
        for split, images in (("train", splits.train), ("test", splits.test)):
            self._check(root, split, images)
        return Source(self.name, self.class_names, splits.train, splits.test), splits.test_name

    def _check(self, root: str, split: str, images: ImageSet) -> None:
        present = set(images.targets)
        absent = [name for target, name in enumerate(self.class_names) if target not in present]
        if absent:
            raise self.error(
                root,
                f"it has {split} images of {len(present)} classes instead of "
                f"{len(self.class_names)}, none of {folder.shortened(absent)} (if it was unpacked "
                "only in part, unpack it again; stream=folder takes any classes)",
            )
        if len(images) != self.published[split]:
            _log.warning(
                "stream.root=%s has %s %s images instead of the published %s",
                *(root, f"{len(images):,}", split, f"{self.published[split]:,}"),
            )


@dataclass(frozen=True)
class ClassFolders(Layout[Splits]):
    """Layout: folders train/<class>/ and test/<class>/."""

    class_id: ClassId

    def is_in(self, directory: Path) -> bool:
        return folder.has_layout(directory)

    def looks_right(self, directory: Path) -> bool:
        """Any data set may have folders train and test: the names of the classes decide."""
        return holds_classes(directory / "train", self.class_id)

    def read(self, root: str, directory: Path, make_error: MakeError) -> Splits:
        train = read_class_folders(directory / "train", self.class_id, make_error)
        test = read_class_folders(directory / "test", self.class_id, make_error)
        return Splits(train, test, "test")


@dataclass(frozen=True)
class ClassParquet(Layout[Splits]):
    """Layout: parquet files of the Hub, in the folder itself or in data/; the first of `test_names`
    that has files holds the test images.
    """

    class_id: ClassId
    test_names: tuple[str, ...] = ("test",)

    def is_in(self, directory: Path) -> bool:
        return bool(self._shards(directory))

    def read(self, root: str, directory: Path, make_error: MakeError) -> Splits:
        shards = self._shards(directory)
        for split in ("train", "test"):
            if split not in shards:
                other = next(iter(shards.values()))[0]
                raise make_error(
                    f"{other.parent} has {other.name} but no parquet file of {split} images"
                )
        train, test = (
            read_class_parquet(root, shards[split], self.class_id, make_error)
            for split in ("train", "test")
        )
        return Splits(train, test, shards["test"][0].name.partition("-")[0])

    def _shards(self, directory: Path) -> dict[str, list[Path]]:
        return parquet.shards(directory, ("data",), self.test_names)


def read_class_names(stream: str) -> tuple[str, ...]:
    """The lines of class_names/<stream>.txt, one for each class."""
    path = Path(__file__).parents[1] / "class_names" / f"{stream}.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def holds_classes(directory: Path, class_id: ClassId) -> bool:
    """True where `directory` exists and has a folder that is called like one of the classes."""
    if not os.path.isdir(directory) or not os.access(directory, folder.READABLE):
        return False
    return any(class_id(name) is not None for name in subdirectories(directory))


def read_class_folders(directory: Path, class_id: ClassId, make_error: MakeError) -> ImageSet:
    """The images in the class folders of one split; folders without image files are ignored.

    Args:
        directory: the folder of the split.
        class_id: the class of a folder's name.
        make_error: makes the error of a missing directory, and of folders with images that are none
            of the classes.
    """
    if not directory.is_dir():
        raise make_error(f"{directory} is missing")
    targets, paths, unknown = [], [], []
    for name in subdirectories(directory):
        files, target = image_files(directory / name), class_id(name)
        if target is not None:
            targets += [target] * len(files)
            paths += files
        elif files:
            unknown.append(name)
    if unknown:
        raise make_error(
            f"{directory} has images in folders that are none of the data set's classes: "
            f"{folder.shortened(unknown)} (stream=folder takes any classes)"
        )
    return ImageSet(targets, paths)


def read_class_parquet(
    root: str, shards: Sequence[Path], class_id: ClassId, make_error: MakeError
) -> ImageSet:
    """The rows of one split's files, in memory as they are encoded.

    Copies of a data set number its classes differently, so the names that the files give to their
    labels decide.

    Args:
        root: what the user gave as stream.root.
        shards: the files of the split.
        class_id: the class of a name.
        make_error: makes the error of labels without a known name.
    """
    rows = parquet.read(root, shards, {"label": int}, make_error)
    names = dict(enumerate(rows.class_names or []))
    target_of: dict[int, int] = {}
    for label in sorted(set(rows.labels)):
        target = class_id(names[label]) if label in names else None
        if target is None:
            called = f"calls {names[label]!r}" if label in names else "does not name"
            raise make_error(
                f"{shards[0]} has the label {label}, which the Hub's metadata in it {called}; "
                "each must be named as one of the data set's classes"
            )
        target_of[label] = target
    return ImageSet([target_of[label] for label in rows.labels], rows.images, rows.names)
