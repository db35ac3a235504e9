"""Tiny-ImageNet (Stanford CS231n, 2015): 200 classes of 64 by 64 pictures, from a local copy in
three layouts.

Its official test images have no published labels, so its 10,000 validation images are what this
field tests on.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from smope.declare.texts import ImageFolder
from smope.streams.archives.download import Archive
from smope.streams.archives.official_dataset import Layout, MakeError
from smope.streams.layouts import key_value
from smope.streams.layouts.known_classes import (
    ClassParquet,
    KnownClassesDataset,
    Splits,
    holds_classes,
    read_class_folders,
    read_class_names,
)
from smope.streams.source import ImageSet, Source

# WordNet ids (wnids) of wnids.txt, sorted, and the first of each one's names in words.txt
_WNIDS_AND_NAMES = [line.split(" ", 1) for line in read_class_names("tiny_imagenet")]
# The parquet copy zh-plus/tiny-imagenet of the Hub calls 18 classes by the ids of other words
# spelled the same
_HUB_IDS = """
n02666347:n02666196 n03373237:n02190166 n04465666:n04465501 n04598010:n04597913 n07056680:n04067472
n07646821:n01855672 n07647870:n03250847 n07657664:n07579787 n07975909:n02206856 n08496334:n02730930
n08620881:n03976657 n08742578:n02085620 n12520864:n02906734 n13001041:n07734744 n13652335:n03804744
n13652994:n02999410 n13719102:n01945685 n14991210:n07747607
"""
WNIDS, CLASS_NAMES = zip(*_WNIDS_AND_NAMES, strict=True)
_CLASS_IDS = {wnid: class_id for class_id, wnid in enumerate(WNIDS)}
_CLASS_IDS |= {
    other: _CLASS_IDS[wnid] for other, wnid in (item.split(":") for item in _HUB_IDS.split())
}
class_id_of = _CLASS_IDS.get
# what folders or parquet files of test images may be called: the first that exists counts
TEST_NAMES = ("test", "val", "valid", "validation")


class WnidFolders(Layout[Splits]):
    """Layout: folders train/<wnid>/ and test/<wnid>/, the latter under any of the test names; or,
    as the archive unpacks, the test images in val/images and their classes in a list.
    """

    def is_in(self, directory: Path) -> bool:
        marks = (directory / "wnids.txt", directory / "val" / "val_annotations.txt")
        if any(map(os.path.isfile, marks)):
            return True
        return any(holds_classes(directory / name, class_id_of) for name in ("train", *TEST_NAMES))

    def read(self, root: str, directory: Path, make_error: MakeError) -> Splits:
        train = read_class_folders(directory / "train", class_id_of, make_error)
        for name in TEST_NAMES:
            if holds_classes(directory / name, class_id_of):
                test = read_class_folders(directory / name, class_id_of, make_error)
                return Splits(train, test, name)
        return Splits(train, _annotated_images(directory / "val", make_error), "val")


DATASET = KnownClassesDataset(
    name="tiny_imagenet",
    title="Tiny-ImageNet",
    # md5: its owner publishes none, this one is recorded by Avalanche and many other loaders
    archive=Archive(
        url="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
        filename="tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
        size=248100043,
    ),
    top="tiny-imagenet-200",
    accepted=(
        "the archive as it unpacks (tiny-imagenet-200/ or the folder above it), class folders "
        "train/<wnid>/ and test/<wnid>/ or val/<wnid>/, or parquet files train-*.parquet and "
        "valid-*.parquet (in data/)"
    ),
    layouts=(ClassParquet(class_id_of, TEST_NAMES), WnidFolders()),
    class_names=CLASS_NAMES,
    published={"train": 100_000, "test": 10_000},
)


def load(root: ImageFolder, download: bool = False) -> Source:
    """Tiny-ImageNet; run.json says as `test_images` what its folder of test images is called.

    The test images are those of the first of test, val, valid and validation that has any. Class
    ids are the places in the sorted wnids in every layout. Other numbers of images than the
    official ones are accepted, with a warning, but all 200 classes must have training and test
    images.

    Args:
        root: folder that holds the unpacked archive, class folders or parquet files.
        download: fetch the official archive into `root` where it holds none of these.

    Raises:
        UserError: names stream.root, what is wrong with it and what is accepted.
    """
    source, test_name = DATASET.load(root, download)
    return dataclasses.replace(source, facts={"test_images": test_name})


def _annotated_images(directory: Path, make_error: MakeError) -> ImageSet:
    """The images of val/images by val_annotations.txt, whose lines are file, wnid and a box,
    separated by tabs.
    """
    annotations = directory / "val_annotations.txt"
    targets, paths = [], []
    for name, value in key_value.read(annotations, make_error).items():
        wnid = value.text.split()[0]
        target = class_id_of(wnid)
        if target is None:
            raise make_error(
                f"line {value.line} of {annotations} has {wnid[:80]!r}, which is none of the 200 "
                "classes"
            )
        targets.append(target)
        paths.append(directory / "images" / name)
    key_value.require_files(paths, annotations.name, DATASET.archive, make_error)
    return ImageSet(targets, paths)
