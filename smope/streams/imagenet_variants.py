"""ImageNet-R and ImageNet-A: 200 of ImageNet's classes each, in folders named by WordNet ids
(wnids).
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from smope.errors import UserError
from smope.streams import folder
from smope.streams.archives import locate
from smope.streams.archives.download import Archive
from smope.streams.layouts import parquet
from smope.streams.layouts.splits import TEST_FRACTION, held_out, split_hash
from smope.streams.pixels.decode import StoredImage
from smope.streams.source import ImageSet, Source

NUM_CLASSES = 200
WNID = re.compile(r"n\d{8}")
NAMED_WNID = re.compile(r"^\s*(n\d{8})\s+(\S.*?)\s*$", re.MULTILINE)
PARQUET_PLACES = ("data", "test")
PARQUET_LABELS = {"wnid": str, "label": int}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """One of the data sets. top: what its archive unpacks to. first_wnid: the first of its classes
    in sorted order, which tells it from the other one.
    """

    name: str
    title: str
    top: str
    archive: Archive
    num_images: int
    first_wnid: str


class Item(NamedTuple):
    """An image: its class folder (usually a wnid), its file's name there, and what errors call it.

    split: "train" or "test" where its place on disk says so, else None.
    """

    wnid: str
    file: str
    picture: StoredImage
    name: str
    split: str | None

    @property
    def place(self) -> str:
        """As split lists name it."""
        return f"{self.wnid}/{self.file}"


@dataclass(frozen=True)
class Found:
    """A variant on disk. directory: where. items: sorted by wnid and file. words: human class
    names by wnid.
    """

    directory: Path
    items: list[Item]
    words: Mapping[str, str]

    @property
    def wnids(self) -> list[str]:
        return folder.by_name({item.wnid for item in self.items})


def find(variant: Variant, root: str, download: bool) -> Found:
    """The images of `variant` under `root`, in the first layout found there or in its folder
    `variant.top`.

    Layouts: class folders as the archive unpacks to, class folders in train and test, the Hub's
    parquet files (whose images are then in memory, encoded: about 2 GB of ImageNet-R). UserError
    naming stream.root, what was found and what is accepted, also where classes are missing; a
    number of images that is not the published one is only warned of.
    """
    place = locate.directory(
        root, variant.archive, partial(_is_there, variant), download, _layouts(variant)
    )
    directory = _directory(variant, place)
    if directory is None:
        hint = locate.left_packed(place) or folder.better_root(
            place, partial(_looks_right, variant)
        )
        raise _refused(variant, root, f"it holds {folder.shortened(folder.visible(place))}{hint}")
    words = _words_of_readme(directory)
    wnids = _wnid_folders(directory)
    if wnids:
        _refuse_half(variant, root, directory)
        items = _from_folders(directory, wnids, None)
    elif folder.has_layout(directory):
        splits = [(split, directory / split) for split in ("train", "test")]
        items = [
            item
            for split, at in splits
            for item in _from_folders(at, folder.subdirectories(at), split)
        ]
    else:
        items, words = _from_parquet(variant, root, directory)
    found = Found(directory, sorted(items, key=lambda item: item[:2]), words)
    _check(variant, root, found)
    return found


def drawn(found: Found, seed: int) -> tuple[list[str], dict[str, Any]]:
    """The split of each item and facts on it: as the place on disk says, or else 80/20 a class,
    drawn with `seed`.
    """
    if all(item.split for item in found.items):
        return [item.split or "" for item in found.items], {"split": "as on disk"}
    test = set(held_out([item.wnid for item in found.items], TEST_FRACTION, seed))
    splits = ["test" if index in test else "train" for index in range(len(found.items))]
    return splits, {"split": "drawn", "split_seed": seed}


def divided(
    variant: Variant,
    found: Found,
    splits: Sequence[str | None],
    wnids: Sequence[str],
    facts: Mapping[str, Any],
) -> Source:
    """The source: items by their split (None: left out), class ids by the place in `wnids`,
    `facts` and split_hash.
    """
    class_ids = {wnid: class_id for class_id, wnid in enumerate(wnids)}
    sets = {}
    for split in ("train", "test"):
        items = [
            item for item, its_split in zip(found.items, splits, strict=True) if its_split == split
        ]
        sets[split] = ImageSet(
            [class_ids[item.wnid] for item in items],
            [item.picture for item in items],
            [item.name for item in items],
        )
    pairs = ((item.place, split) for item, split in zip(found.items, splits, strict=True) if split)
    facts = {**facts, "split_hash": split_hash(pairs)}
    return Source(
        variant.name, _readable_names(wnids, found.words), sets["train"], sets["test"], facts=facts
    )


def _layouts(variant: Variant) -> str:
    return (
        f"the archive as it unpacks ({variant.top}/<wnid>/ or the <wnid>/ folders themselves), "
        f"class folders "
        "train/<class>/ and test/<class>/, or parquet files of the Hub (in data/ or test/)"
    )


def _refused(variant: Variant, root: str, what: str) -> UserError:
    return UserError(
        f"stream.root={root} is no complete {variant.title}: {what}; accepted are "
        f"{_layouts(variant)}; "
        f"{locate.way_to_get(variant.archive)}"
    )


def _is_there(variant: Variant, place: Path) -> bool:
    return _directory(variant, place) is not None


def _looks_right(variant: Variant, place: Path) -> bool:
    """Whether `place` has class folders, and as many as `variant` and with the same first one."""
    directory = _directory(variant, place)
    if directory is None:
        return False
    train = directory / "train"
    names = _wnid_folders(directory) or (folder.subdirectories(train) if train.is_dir() else [])
    return len(names) == NUM_CLASSES and not _is_other(variant, names)


def _is_other(variant: Variant, names: Sequence[str]) -> bool:
    """Whether all of these sorted class folders are wnids, and not those of `variant`."""
    return all(map(WNID.fullmatch, names)) and names[0] != variant.first_wnid


def _directory(variant: Variant, place: Path) -> Path | None:
    """Which of `place` and its folder `variant.top` holds images, complete or not."""
    for candidate in (place / variant.top, place):
        if not os.path.isdir(candidate) or not os.access(candidate, folder.READABLE):
            continue
        if (
            _wnid_folders(candidate)
            or folder.has_layout(candidate)
            or parquet.shards(candidate, PARQUET_PLACES)
        ):
            return candidate
    return None


def _wnid_folders(directory: Path) -> list[str]:
    return [name for name in folder.subdirectories(directory) if WNID.fullmatch(name)]


def _refuse_half(variant: Variant, root: str, directory: Path) -> None:
    """The folder train of class folders alone looks like the archive as it unpacks."""
    whole = directory.absolute()
    if whole.name in ("train", "test") and folder.has_layout(whole.parent):
        raise _refused(
            variant,
            root,
            f"it is one of two folders, train and test; stream.root={whole.parent} looks right",
        )


def _from_folders(directory: Path, names: Sequence[str], split: str | None) -> list[Item]:
    return [
        Item(name, path.relative_to(directory / name).as_posix(), path, str(path), split)
        for name in names
        for path in folder.image_files(directory / name)
    ]


def _from_parquet(
    variant: Variant, root: str, directory: Path
) -> tuple[list[Item], dict[str, str]]:
    """The items of all files, with their split only where there are files of both, and human class
    names.
    """
    refused = partial(_refused, variant, root)
    shards = parquet.shards(directory, PARQUET_PLACES)
    items, words = [], {}
    for split, paths in shards.items():
        rows = parquet.read(root, paths, PARQUET_LABELS, refused, texts=("class_name",))
        wnids = _wnids_of_rows(paths[0], rows, refused)
        words |= {
            wnid: word for wnid, word in zip(wnids, rows.texts["class_name"], strict=True) if word
        }
        # where file names were not kept, the number of the row says which image it is
        files = [file or f"{split} {row:06d}" for row, file in enumerate(rows.files)]
        items += map(
            Item,
            wnids,
            files,
            rows.images,
            rows.names,
            [split if len(shards) > 1 else None] * len(files),
        )
    return items, words


def _wnids_of_rows(path: Path, rows: parquet.Rows, refused: parquet.Refused) -> list[str]:
    if all(isinstance(label, str) for label in rows.labels):
        return rows.labels
    names = rows.class_names
    if names is None or not all(
        type(label) is int and 0 <= label < len(names) for label in rows.labels
    ):
        raise refused(f"{path} has class ids that the Hub's metadata in it does not name")
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


def _check(variant: Variant, root: str, found: Found) -> None:
    wnids = found.wnids
    if len(wnids) != NUM_CLASSES:
        raise _refused(
            variant,
            root,
            f"{found.directory} has images of {len(wnids)} classes instead of {NUM_CLASSES} (if "
            f"it was unpacked only "
            f"in part, unpack {variant.archive.filename} again; stream=folder takes any classes)",
        )
    if _is_other(variant, wnids):
        raise _refused(
            variant,
            root,
            f"the first of the classes in {found.directory} is {wnids[0]} instead of "
            f"{variant.first_wnid}, so this is "
            "another data set",
        )
    if len(found.items) != variant.num_images:
        _log.warning(
            "stream.root=%s: %s has %s images instead of the %s of %s",
            *(
                root,
                found.directory,
                f"{len(found.items):,}",
                f"{variant.num_images:,}",
                variant.title,
            ),
        )
