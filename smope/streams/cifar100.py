"""CIFAR-100 (Krizhevsky, 2009): 100 classes of 32 by 32 RGB images, from a local copy in three
layouts.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from smope.declare.texts import ImageFolder
from smope.streams import folder
from smope.streams.archives.download import Archive
from smope.streams.archives.official_dataset import Layout, MakeError, OfficialDataset
from smope.streams.layouts import parquet
from smope.streams.layouts.known_classes import read_class_names
from smope.streams.layouts.listing import subdirectories, visible
from smope.streams.source import ImageSet, Source

CLASS_NAMES = read_class_names("cifar100")  # CIFAR's numbering, which is alphabetical
PYTHON_DIRECTORY = "cifar-100-python"
PYTHON_FILES = ("train", "test", "meta")
PARQUET_DIRECTORIES = ("data", "cifar100")


class PythonFiles(Layout[Source]):
    """Layout: the official archive, pickled files train, test and meta, as torchvision reads it."""

    def is_in(self, directory: Path) -> bool:
        return self._files_directory(directory) is not None

    def read(self, root: str, directory: Path, make_error: MakeError) -> Source:
        files_directory = self._files_directory(directory)
        assert files_directory is not None
        missing = [name for name in PYTHON_FILES if not (files_directory / name).is_file()]
        if missing:
            present = folder.shortened(visible(files_directory))
            raise make_error(f"{files_directory} holds {present} but no file {missing[0]}")
        class_names = _unpickle(files_directory / "meta", make_error).get("fine_label_names")
        splits = {
            split: self._read_split(files_directory / split, make_error)
            for split in ("train", "test")
        }
        return _in_official_order(class_names, splits, make_error)

    def _read_split(self, path: Path, make_error: MakeError) -> ImageSet:
        table = _unpickle(path, make_error)
        pixels: Any = table.get("data")
        targets = table.get("fine_labels")
        if getattr(pixels, "dtype", None) != numpy.uint8 or pixels.shape[1:] != (3072,):
            raise make_error(f"{path} has no uint8 array `data` of 3,072 columns")
        if not isinstance(targets, list) or len(targets) != len(pixels):
            raise make_error(f"{path} has no list `fine_labels` with a label a row")
        images = list(numpy.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)))
        return ImageSet([int(target) for target in targets], images)

    def _files_directory(self, directory: Path) -> Path | None:
        """The directory of the files, complete or not."""
        for candidate in (directory / PYTHON_DIRECTORY, directory):
            if candidate.name == PYTHON_DIRECTORY and candidate.is_dir():
                return candidate
            if any((candidate / name).is_file() for name in PYTHON_FILES):
                return candidate
        return None


class ClassFolders(Layout[Source]):
    """Layout: folders train/<class>/ and test/<class>/ of exactly CIFAR-100's classes."""

    def is_in(self, directory: Path) -> bool:
        return folder.has_layout(directory)

    def looks_right(self, directory: Path) -> bool:
        return subdirectories(directory / "train") == list(CLASS_NAMES)

    def read(self, root: str, directory: Path, make_error: MakeError) -> Source:
        for split in ("train", "test"):
            names = set(subdirectories(directory / split))
            missing, unknown = sorted(set(CLASS_NAMES) - names), sorted(names - set(CLASS_NAMES))
            if missing or unknown:
                details = [f"{len(names)} class folders in {split}"]
                details += [f"without {folder.shortened(missing)}"] if missing else []
                details += [f"with unknown {folder.shortened(unknown)}"] if unknown else []
                raise make_error(f"it holds {', '.join(details)} (stream=folder takes any classes)")
        source = folder.load(root)
        return Source(DATASET.name, source.class_names, source.train, source.test)


class HubParquet(Layout[Source]):
    """Layout: parquet files train-*.parquet and test-*.parquet of the Hub."""

    def is_in(self, directory: Path) -> bool:
        return bool(parquet.shards(directory, PARQUET_DIRECTORIES))

    def read(self, root: str, directory: Path, make_error: MakeError) -> Source:
        shards = parquet.shards(directory, PARQUET_DIRECTORIES)
        class_names = None
        splits = {}
        for split in ("train", "test"):
            if split not in shards:
                files_directory = next(iter(shards.values()))[0].parent
                present = folder.shortened(visible(files_directory))
                raise make_error(f"{files_directory} holds {present} but no {split}-*.parquet")
            rows = parquet.read(root, shards[split], {"fine_label": int}, make_error)
            splits[split] = ImageSet(rows.labels, rows.images, rows.names)
            class_names = rows.class_names
        return _in_official_order(class_names, splits, make_error)


DATASET = OfficialDataset(
    name="cifar100",
    title="CIFAR-100",
    # md5: from the table on the owner's page https://www.cs.toronto.edu/~kriz/cifar.html
    archive=Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        filename="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        size=169001437,
    ),
    top="",
    accepted=(
        "torchvision's cifar-100-python/ (files train, test, meta), class folders train/<class>/ "
        "and test/<class>/, or parquet files train-*.parquet and test-*.parquet (in data/ or "
        "cifar100/)"
    ),
    layouts=(PythonFiles(), ClassFolders(), HubParquet()),
)


def load(root: ImageFolder, download: bool = False) -> Source:
    """CIFAR-100 with CIFAR's own class ids, which are alphabetical, in every layout.

    A subset is accepted if all 100 classes have training and test images.

    Args:
        root: folder that holds torchvision's layout, class folders or the Hub's parquet files.
        download: fetch the official archive into `root` where it holds none of these.

    Raises:
        UserError: names stream.root, what is wrong with it and what is accepted.
    """
    return DATASET.read(root, download)


class _DataUnpickler(pickle.Unpickler):
    """Reads arrays and plain values and nothing else: unpickling can otherwise run any code."""

    ALLOWED = (
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module_name = module_name.replace("numpy.core", "numpy._core")  # its name before numpy 2
        if (module_name, global_name) not in self.ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which is no data"
            )
        return super().find_class(module_name, global_name)


def _unpickle(path: Path, make_error: MakeError) -> dict[str, Any]:
    try:
        table = _DataUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly every class of exception
        raise make_error(f"cannot read {path} ({error})") from error
    if not isinstance(table, dict):
        raise make_error(f"{path} holds no dictionary")
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in table.items()}


def _in_official_order(
    class_names: Sequence[str] | None, splits: dict[str, ImageSet], make_error: MakeError
) -> Source:
    """The source, its class ids in CIFAR's order where the files name CIFAR's classes in another
    order.

    Args:
        class_names: as the files number them; None where they give no names.
        splits: training and test images with the files' class ids.
        make_error: makes the error of wrong numbers of classes.
    """
    names = list(CLASS_NAMES if class_names is None else class_names)
    if len(names) != len(CLASS_NAMES):
        raise make_error(f"it names {len(names)} classes instead of {len(CLASS_NAMES)}")
    ordered = CLASS_NAMES if set(names) == set(CLASS_NAMES) else tuple(names)
    target_of = {target: ordered.index(name) for target, name in enumerate(names)}
    renumbered = {}
    for split, images in splits.items():
        if set(images.targets) != set(target_of):
            present = f"{split} has {len(set(images.targets))} different class ids"
            raise make_error(f"{present} instead of each of 0 to {len(names) - 1}")
        targets = [target_of[target] for target in images.targets]
        renumbered[split] = ImageSet(targets, images.images, images.names)
    return Source(DATASET.name, ordered, renumbered["train"], renumbered["test"])
