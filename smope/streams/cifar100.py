"""CIFAR-100 (Krizhevsky, 2009): 100 classes of 32 by 32 RGB images, from a local copy in three
layouts.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from smope.errors import UserError
from smope.streams import folder
from smope.streams.archives import locate
from smope.streams.archives.download import Archive
from smope.streams.layouts import parquet
from smope.streams.pixels.decode import StoredImage
from smope.streams.source import ImageSet, Source

_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
worm
"""
CLASS_NAMES = tuple(_NAMES.split())  # CIFAR's numbering, which is alphabetical
LAYOUTS = (
    "torchvision's cifar-100-python/ (files train, test, meta), class folders train/<class>/ "
    "and test/<class>/, or parquet files train-*.parquet and test-*.parquet (in data/ or cifar100/)"
)
# md5: from the table on the owner's page https://www.cs.toronto.edu/~kriz/cifar.html
ARCHIVE = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    filename="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    size=169001437,
)
_PYTHON_FILES = ("train", "test", "meta")
_PARQUET_PLACES = ("data", "cifar100")

# images of one split, their class ids, and what errors call each image
_Split = tuple[list[StoredImage], list[int], list[str] | None]


def load(root: str, download: bool = False) -> Source:
    """CIFAR-100 under `root`, in the first layout found there: torchvision's, class folders, Hub
    parquet.

    Class ids are CIFAR's own (alphabetical) in every layout. Any number of images a class will do,
    so subsets are welcome, but all 100 classes must have training and test images. Where there is
    no layout at all and `download`, the official archive is fetched into `root`. UserError naming
    stream.root, what was found and what is accepted.
    """
    place = locate.directory(root, ARCHIVE, _has_layout, download, LAYOUTS)
    python = _python_directory(place)
    if python is not None:
        return _from_python(root, python)
    if folder.has_layout(place):
        return _from_folders(root, place)
    shards = parquet.shards(place, _PARQUET_PLACES)
    if shards:
        return _from_parquet(root, shards)
    hint = locate.left_packed(place) or folder.better_root(place, _is_cifar)
    raise _refused(root, f"it holds {folder.shortened(folder.visible(place))}{hint}")


def _refused(root: str, found: str) -> UserError:
    return UserError(
        f"stream.root={root} is no complete CIFAR-100: {found}; accepted are {LAYOUTS}; "
        f"{locate.way_to_get(ARCHIVE)}"
    )


def _has_layout(place: Path) -> bool:
    layouts = (
        _python_directory(place),
        folder.has_layout(place),
        parquet.shards(place, _PARQUET_PLACES),
    )
    return any(layouts)


def _is_cifar(place: Path) -> bool:
    if folder.has_layout(place):
        return folder.subdirectories(place / "train") == list(CLASS_NAMES)
    return _has_layout(place)


def _python_directory(place: Path) -> Path | None:
    """The directory of torchvision's layout, complete or not."""
    for candidate in (place / "cifar-100-python", place):
        if candidate.name == "cifar-100-python" and candidate.is_dir():
            return candidate
        if any((candidate / name).is_file() for name in _PYTHON_FILES):
            return candidate
    return None


def _from_folders(root: str, place: Path) -> Source:
    for split in ("train", "test"):
        names = set(folder.subdirectories(place / split))
        if names != set(CLASS_NAMES):
            missing, unknown = sorted(set(CLASS_NAMES) - names), sorted(names - set(CLASS_NAMES))
            details = [f"{len(names)} class folders in {split}"]
            details += [f"without {folder.shortened(missing)}"] if missing else []
            details += [f"with unknown {folder.shortened(unknown)}"] if unknown else []
            raise _refused(root, f"it holds {', '.join(details)} (stream=folder takes any classes)")
    return dataclasses.replace(folder.load(root), name="cifar100")


def _from_python(root: str, place: Path) -> Source:
    missing = [name for name in _PYTHON_FILES if not (place / name).is_file()]
    if missing:
        found = folder.shortened(folder.visible(place))
        raise _refused(root, f"{place} holds {found} but no file {missing[0]}")
    names = _unpickle(root, place / "meta").get("fine_label_names")
    splits = {}
    for split in ("train", "test"):
        table = _unpickle(root, place / split)
        pixels: Any = table.get("data")
        targets = table.get("fine_labels")
        if getattr(pixels, "dtype", None) != numpy.uint8 or pixels.shape[1:] != (3072,):
            raise _refused(root, f"{place / split} has no uint8 array `data` of 3,072 columns")
        if not isinstance(targets, list) or len(targets) != len(pixels):
            raise _refused(root, f"{place / split} has no list `fine_labels` with a label a row")
        images = list(numpy.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)))
        splits[split] = (images, [int(target) for target in targets], None)
    return _source(root, names, splits)


class _DataUnpickler(pickle.Unpickler):
    """Reads arrays and plain values and nothing else: an unpickled file could otherwise run any
    code.
    """

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


def _unpickle(root: str, path: Path) -> dict[str, Any]:
    try:
        table = _DataUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly every class of exception
        raise _refused(root, f"cannot read {path} ({error})") from error
    if not isinstance(table, dict):
        raise _refused(root, f"{path} holds no dictionary")
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in table.items()}


def _from_parquet(root: str, shards: dict[str, list[Path]]) -> Source:
    names = None
    splits = {}
    for split in ("train", "test"):
        if split not in shards:
            place = next(iter(shards.values()))[0].parent
            found = folder.shortened(folder.visible(place))
            raise _refused(root, f"{place} holds {found} but no {split}-*.parquet")
        rows = parquet.read(root, shards[split], {"fine_label": int}, partial(_refused, root))
        splits[split] = (rows.images, rows.labels, rows.names)
        names = rows.class_names
    return _source(root, names, splits)


def _source(root: str, names: Sequence[str] | None, splits: dict[str, _Split]) -> Source:
    """The source; class ids are moved to CIFAR's order where the file has CIFAR's names in another
    order.
    """
    names = list(CLASS_NAMES if names is None else names)
    if len(names) != len(CLASS_NAMES):
        raise _refused(root, f"it names {len(names)} classes instead of {len(CLASS_NAMES)}")
    class_names = CLASS_NAMES if set(names) == set(CLASS_NAMES) else tuple(names)
    sets = {}
    for split, (images, targets, rows) in splits.items():
        present = {target for target in targets if 0 <= target < len(names)}
        if len(present) != len(names) or present != set(targets):
            found = f"{split} has {len(set(targets))} different class ids"
            raise _refused(root, f"{found} instead of each of 0 to {len(names) - 1}")
        targets = [class_names.index(names[target]) for target in targets]
        sets[split] = ImageSet(targets, images, rows)
    return Source("cifar100", class_names, sets["train"], sets["test"])
