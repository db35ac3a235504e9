"""CUB-200-2011 (Wah et al., 2011): 11,788 pictures of 200 kinds of birds, from a local copy in
three layouts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from smope.declare.texts import ImageFolder
from smope.streams import folder
from smope.streams.archives.download import Archive
from smope.streams.archives.official_dataset import Layout, MakeError
from smope.streams.layouts import key_value
from smope.streams.layouts.known_classes import (
    ClassFolders,
    ClassParquet,
    KnownClassesDataset,
    Splits,
    holds_classes,
    read_class_names,
)
from smope.streams.source import ImageSet, Source

# in the official numbering, from classes.txt, without the numbers
CLASS_NAMES = read_class_names("cub200")
IMAGES, LABELS, SPLIT = LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
CLASS_OF_NUMBER = {str(class_id + 1): class_id for class_id in range(len(CLASS_NAMES))}
SPLIT_OF_FLAG = {"0": "test", "1": "train"}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]+", "_", name.lower()).strip("_")


_CLASS_IDS = {_letters(name): class_id for class_id, name in enumerate(CLASS_NAMES)}


def class_id_of(name: str) -> int | None:
    """The class of a name with or without its number: 001.Black_footed_Albatross or Black footed
    albatross.
    """
    return _CLASS_IDS.get(_letters(name))


class ImageLists(Layout[Splits]):
    """Layout: the archive, whose three lists name the images and their classes and splits."""

    def is_in(self, directory: Path) -> bool:
        """An archive that was not unpacked to its end may lack the lists."""
        has_list = any(os.path.isfile(directory / name) for name in LISTS)
        return has_list or holds_classes(directory / "images", class_id_of)

    def read(self, root: str, directory: Path, make_error: MakeError) -> Splits:
        """The images that images.txt names and no others: there are a few more files on disk."""
        lists = {name: key_value.read(directory / name, make_error) for name in LISTS}
        _require_same_numbers(directory, lists, make_error)
        paths = {
            number: directory / "images" / value.text for number, value in lists[IMAGES].items()
        }
        key_value.require_files(list(paths.values()), IMAGES, DATASET.archive, make_error)
        targets: dict[str, list[int]] = {"train": [], "test": []}
        files: dict[str, list[Path]] = {"train": [], "test": []}
        for number, path in paths.items():
            flag = _checked(lists[SPLIT][number], SPLIT_OF_FLAG, directory / SPLIT, make_error)
            label = _checked(lists[LABELS][number], CLASS_OF_NUMBER, directory / LABELS, make_error)
            targets[SPLIT_OF_FLAG[flag]].append(CLASS_OF_NUMBER[label])
            files[SPLIT_OF_FLAG[flag]].append(path)
        train, test = (ImageSet(targets[split], files[split]) for split in ("train", "test"))
        return Splits(train, test, "test")


DATASET = KnownClassesDataset(
    name="cub200",
    title="CUB-200-2011",
    # page: https://data.caltech.edu/records/65de6-vp158; md5 as recorded by Avalanche, size by
    # tensorflow_datasets
    archive=Archive(
        url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        filename="CUB_200_2011.tgz",
        md5="97eceeb196236b17998738112f37df78",
        size=1150585339,
    ),
    top="CUB_200_2011",
    accepted=(
        "the archive as it unpacks (CUB_200_2011/ or the folder above it), class folders "
        "train/<class>/ and test/<class>/, or parquet files train-*.parquet and test-*.parquet "
        "(in data/)"
    ),
    layouts=(ImageLists(), ClassFolders(class_id_of), ClassParquet(class_id_of)),
    class_names=CLASS_NAMES,
    published={"train": 5994, "test": 5794},
)


def load(root: ImageFolder, download: bool = False) -> Source:
    """CUB-200-2011 with the official split into 5,994 and 5,794 images.

    Class ids are the official numbers less one in every layout. Other numbers of images are
    accepted, with a warning, but all 200 classes must have training and test images. Images of
    parquet files are kept in memory as they are encoded: 1.2 GB.

    Args:
        root: folder that holds the unpacked archive, class folders or parquet files.
        download: fetch the official archive into `root` where it holds none of these.

    Raises:
        UserError: names stream.root, what is wrong with it and what is accepted.
    """
    source, _ = DATASET.load(root, download)
    return source


def _require_same_numbers(
    directory: Path, lists: Mapping[str, Mapping[str, key_value.Value]], make_error: MakeError
) -> None:
    numbers = dict.fromkeys(number for values in lists.values() for number in values)
    for name, values in lists.items():
        absent = [number for number in numbers if number not in values]
        if absent:
            raise make_error(
                f"{directory / name} has no line for {len(absent):,} of {len(numbers):,} images "
                f"that other lists have, the first is number {absent[0]}; unpack "
                f"{DATASET.archive.filename} again"
            )


def _checked(
    value: key_value.Value, accepted: Mapping[str, object], path: Path, make_error: MakeError
) -> str:
    if value.text not in accepted:
        expected = folder.shortened(list(accepted))
        raise make_error(
            f"line {value.line} of {path} has {value.text[:80]!r} where one of {expected} is "
            "expected"
        )
    return value.text
