"""ImageNet-R and ImageNet-A: 200 of ImageNet's classes each, in folders named by WordNet ids
(wnids).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from smope.streams import folder
from smope.streams.archives.download import Archive
from smope.streams.archives.official_dataset import Layout, MakeError, OfficialDataset
from smope.streams.layouts import parquet
from smope.streams.layouts.listing import image_files, subdirectories
from smope.streams.layouts.names import in_order
from smope.streams.layouts.splits import TEST_FRACTION, draw_split, split_hash
from smope.streams.pixels.decode import StoredImage
from smope.streams.source import ImageSet, Source

NUM_CLASSES = 200
WNID = re.compile(r"n\d{8}")
NAMED_WNID = re.compile(r"^\s*(n\d{8})\s+(\S.*?)\s*$", re.MULTILINE)
PARQUET_DIRECTORIES = ("data", "test")
PARQUET_LABELS = {"wnid": str, "label": int}
_log = logging.getLogger(__name__)


class VariantImage(NamedTuple):
    """One image.

    wnid: its class folder. file: its file's name there. image: the file, or its bytes.
    name: what errors call it. split: "train" or "test" where its place on disk says so, else None.
    """

    wnid: str
    file: str
    image: StoredImage
    name: str
    split: str | None

    @property
    def listed_path(self) -> str:
        """As split lists name it."""
        return f"{self.wnid}/{self.file}"


@dataclass(frozen=True)
class VariantContents:
    """What is on disk. images: sorted by wnid and file. words: human class names by wnid."""

    directory: Path
    images: list[VariantImage]
    words: Mapping[str, str]

    @property
    def wnids(self) -> list[str]:
        return in_order({image.wnid for image in self.images})


@dataclass(frozen=True)
class Variant:
    """One of the two data sets.

    name: of the stream. title: in errors. top: the folder that its archive unpacks to.
    archive: the official file. num_images: officially. first_wnid: the first of its classes in
    sorted order, which distinguishes it from the other data set.
    """

    name: str
    title: str
    top: str
    archive: Archive
    num_images: int
    first_wnid: str

    @property
    def dataset(self) -> OfficialDataset[VariantContents]:
        return OfficialDataset(
            self.name,
            self.title,
            self.archive,
            self.top,
            accepted=(
                f"the archive as it unpacks ({self.top}/<wnid>/ or the <wnid>/ folders "
                "themselves), class folders train/<class>/ and test/<class>/, or parquet files "
                "of the Hub (in data/ or test/)"
            ),
            layouts=(WnidFolders(self), SplitFolders(self), HubParquet()),
        )

    def has_classes(self, sorted_names: Sequence[str]) -> bool:
        """True where there are as many class folders as there should be, the right one first."""
        return len(sorted_names) == NUM_CLASSES and not self.is_other(sorted_names)

    def is_other(self, sorted_names: Sequence[str]) -> bool:
        """True where all class folders are wnids, but not those of this variant."""
        return all(map(WNID.fullmatch, sorted_names)) and sorted_names[0] != self.first_wnid


@dataclass(frozen=True)
class WnidFolders(Layout[VariantContents]):
    """Layout: the folders <wnid>/ of the archive."""

    variant: Variant

    def is_in(self, directory: Path) -> bool:
        return bool(wnid_folders(directory))

    def looks_right(self, directory: Path) -> bool:
        return self.variant.has_classes(wnid_folders(directory))

    def read(self, root: str, directory: Path, make_error: MakeError) -> VariantContents:
        absolute = directory.absolute()
        if absolute.name in ("train", "test") and folder.has_layout(absolute.parent):
            raise make_error(
                f"it is one of two folders, train and test; stream.root={absolute.parent} looks "
                "right"
            )
        images = _read_class_folders(directory, wnid_folders(directory), None)
        return VariantContents(directory, images, _words_of_readme(directory))


@dataclass(frozen=True)
class SplitFolders(Layout[VariantContents]):
    """Layout: folders train/<class>/ and test/<class>/."""

    variant: Variant

    def is_in(self, directory: Path) -> bool:
        return folder.has_layout(directory)

    def looks_right(self, directory: Path) -> bool:
        return self.variant.has_classes(subdirectories(directory / "train"))

    def read(self, root: str, directory: Path, make_error: MakeError) -> VariantContents:
        images = []
        for split in ("train", "test"):
            names = subdirectories(directory / split)
            images += _read_class_folders(directory / split, names, split)
        return VariantContents(directory, images, _words_of_readme(directory))


class HubParquet(Layout[VariantContents]):
    """Layout: parquet files of the Hub; images stay in memory as they are encoded, about 2 GB of
    ImageNet-R.
    """

    def is_in(self, directory: Path) -> bool:
        return bool(parquet.shards(directory, PARQUET_DIRECTORIES))

    def looks_right(self, directory: Path) -> bool:
        """Its files do not say cheaply which classes they hold."""
        return False

    def read(self, root: str, directory: Path, make_error: MakeError) -> VariantContents:
        """All images, with their split only where there are files of both."""
        shards = parquet.shards(directory, PARQUET_DIRECTORIES)
        images: list[VariantImage] = []
        words: dict[str, str] = {}
        for split, paths in shards.items():
            rows = parquet.read(root, paths, PARQUET_LABELS, make_error, texts=("class_name",))
            wnids = _wnids_of_rows(paths[0], rows, make_error)
            for row, (wnid, word) in enumerate(zip(wnids, rows.texts["class_name"], strict=True)):
                if word:
                    words[wnid] = word
                # where file names were not kept, the number of the row identifies the image
                file = rows.files[row] or f"{split} {row:06d}"
                its_split = split if len(shards) > 1 else None
                images.append(
                    VariantImage(wnid, file, rows.images[row], rows.names[row], its_split)
                )
        return VariantContents(directory, images, words)


def read_variant(variant: Variant, root: str, download: bool) -> VariantContents:
    """Read the images of `variant`.

    A number of images that is not the published one is only logged.

    Args:
        variant: which data set.
        root: folder that holds it, or that holds the folder `variant.top`.
        download: fetch the archive into `root` where nothing is there.

    Raises:
        UserError: names stream.root, what is wrong with it and what is accepted, also where classes
            are missing.
    """
    contents = variant.dataset.read(root, download)
    make_error = partial(variant.dataset.error, root)
    wnids = contents.wnids
    if len(wnids) != NUM_CLASSES:
        raise make_error(
            f"{contents.directory} has images of {len(wnids)} classes instead of {NUM_CLASSES} "
            f"(if it was unpacked only in part, unpack {variant.archive.filename} again; "
            "stream=folder takes any classes)"
        )
    if variant.is_other(wnids):
        raise make_error(
            f"the first of the classes in {contents.directory} is {wnids[0]} instead of "
            f"{variant.first_wnid}, so this is another data set"
        )
    if len(contents.images) != variant.num_images:
        count, official = f"{len(contents.images):,}", f"{variant.num_images:,}"
        _log.warning(
            "stream.root=%s: %s has %s images instead of the %s of %s",
            *(root, contents.directory, count, official, variant.title),
        )
    return replace(contents, images=sorted(contents.images, key=lambda image: image[:2]))


def split_without_lists(variant: Variant, contents: VariantContents, seed: int) -> Source:
    """The source with the split that its place on disk says, or else with 20 % of each class drawn
    for testing.

    Args:
        variant: which data set.
        contents: what is on disk.
        seed: draws the test images.
    """
    splits = [image.split for image in contents.images]
    facts: dict[str, Any] = {"split": "as on disk"}
    if not all(splits):
        paths = [image.listed_path for image in contents.images]
        wnids = [image.wnid for image in contents.images]
        drawn = draw_split(paths, wnids, TEST_FRACTION, seed)
        test, facts = set(drawn.test), drawn.facts
        splits = ["test" if index in test else "train" for index in range(len(paths))]
    return make_source(variant, contents, splits, contents.wnids, facts)


def make_source(
    variant: Variant,
    contents: VariantContents,
    splits: Sequence[str | None],
    wnids: Sequence[str],
    facts: Mapping[str, Any],
) -> Source:
    """The source with a given split.

    Args:
        variant: which data set.
        contents: what is on disk.
        splits: of each image; None leaves it out.
        wnids: in the order of the class ids.
        facts: how the split was found; a hash of it (split_hash) is added.
    """
    class_ids = {wnid: class_id for class_id, wnid in enumerate(wnids)}
    pairs = [(image, split) for image, split in zip(contents.images, splits, strict=True) if split]

    def image_set(wanted: str) -> ImageSet:
        images = [image for image, split in pairs if split == wanted]
        return ImageSet(
            [class_ids[image.wnid] for image in images],
            [image.image for image in images],
            [image.name for image in images],
        )

    listed = ((image.listed_path, split) for image, split in pairs)
    return Source(
        variant.name,
        _readable_names(wnids, contents.words),
        image_set("train"),
        image_set("test"),
        facts={**facts, "split_hash": split_hash(listed)},
    )


def wnid_folders(directory: Path) -> list[str]:
    """Names of the folders in `directory` that are wnids, sorted."""
    return [name for name in subdirectories(directory) if WNID.fullmatch(name)]


def _read_class_folders(
    directory: Path, names: Sequence[str], split: str | None
) -> list[VariantImage]:
    images = []
    for name in names:
        for path in image_files(directory / name):
            file = path.relative_to(directory / name).as_posix()
            images.append(VariantImage(name, file, path, str(path), split))
    return images


def _wnids_of_rows(path: Path, rows: parquet.Rows, make_error: MakeError) -> list[str]:
    if all(isinstance(label, str) for label in rows.labels):
        return rows.labels
    names = rows.class_names
    if names is None or not all(
        type(label) is int and 0 <= label < len(names) for label in rows.labels
    ):
        raise make_error(f"{path} has class ids that the Hub's metadata in it does not name")
    return [names[label] for label in rows.labels]


def _words_of_readme(directory: Path) -> dict[str, str]:
    """Names by wnid from the lines "wnid name" of the archive's README.txt; none where it is
    missing.
    """
    readme = directory / "README.txt"
    if not readme.is_file():
        return {}
    return dict(NAMED_WNID.findall(readme.read_text(encoding="utf-8-sig", errors="replace")))


def _readable_names(wnids: Sequence[str], words: Mapping[str, str]) -> tuple[str, ...]:
    """A name for each wnid: its words, with the wnid where others have the same ones; else the
    wnid itself.
    """
    names = [words.get(wnid, wnid) for wnid in wnids]
    counts = Counter(names)
    return tuple(
        name if counts[name] == 1 else f"{name} ({wnid})"
        for wnid, name in zip(wnids, names, strict=True)
    )
