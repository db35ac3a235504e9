"""Which stream a folder or file is meant for, by characteristic names in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from smope.errors import UserError
from smope.streams import folder, imagenet_a, imagenet_r
from smope.streams.imagenet_variants import wnid_folders
from smope.streams.layouts import parquet
from smope.streams.layouts.listing import subdirectories, visible

CLASS_FOLDERS_MARK = "class folders"
WNID_MARK = "folders n########"
LAYOUTS = (
    "train/<class>/ and test/<class>/, folders <class>/ alone, train/ and test/ in a folder for "
    "each domain, a .csv table, and what the archives of CIFAR-100, CUB-200, ImageNet-R, "
    "ImageNet-A and Tiny-ImageNet unpack to"
)
PARQUET_DIRECTORIES = ("data", "cifar100", "test")
PARQUET_STREAMS = ("imagenet_r", "imagenet_a", "cub200", "tiny_imagenet")


def recognise(root: Path) -> tuple[str, str]:
    """The stream that `root` is meant for, and the name in it that says so. UserError where several
    streams or none fit.
    """
    if not root.exists():
        raise UserError(f"ROOT={root} does not exist; check the path")
    mark_of = dict(_marks(root))
    if len(mark_of) == 1:
        return next(iter(mark_of.items()))
    if mark_of:
        choices = " or ".join(f"stream={stream} ({mark})" for stream, mark in mark_of.items())
        raise UserError(f"ROOT={root} may be several data sets; say which with {choices}")
    proposal = folder.better_root(root, partial(_looks_right, root)) if root.is_dir() else ""
    way_out = (
        proposal.replace("stream.root=", "ROOT=")
        or f"; recognised are {LAYOUTS}; say stream=NAME for others"
    )
    raise UserError(f"ROOT={root} is no data set that is recognised: it {_describe(root)}{way_out}")


def _looks_right(root: Path, path: Path) -> bool:
    """True for a data set. Class folders count below `root` alone: many folders hold images in
    folders.
    """
    marks = {mark for _, mark in _marks(path)}
    return bool(marks - {CLASS_FOLDERS_MARK} if path in root.absolute().parents else marks)


def _describe(root: Path) -> str:
    if not root.is_dir():
        return "is a file"
    names = visible(root)
    return f"holds {folder.shortened(names)}" if names else "is empty"


def _marks(root: Path) -> Iterator[tuple[str, str]]:
    """Streams that fit `root`, with the name that says so; class folders and domains only where no
    official archive fits.
    """
    if not root.is_dir():
        if root.suffix.lower() == ".csv":
            yield "table", "a .csv file"
        return
    official = dict(_official(root))
    if official:
        yield from official.items()
        may_be_others = list(official.values()) == 2 * [WNID_MARK]
        if may_be_others and folder.has_class_folders(root):
            yield "folder", CLASS_FOLDERS_MARK
    elif folder.has_layout(root):
        yield "folder", "class folders in train/ and test/"
    elif _holds_domains(root):
        yield "domains", "train/ and test/ in each of its folders"
    elif folder.has_class_folders(root):
        yield "folder", CLASS_FOLDERS_MARK


def _holds_domains(root: Path) -> bool:
    """True if the folders in `root` are domains. Some may lack train or test, which the stream
    reports.
    """
    splits = [set(subdirectories(root / name)) & {"train", "test"} for name in subdirectories(root)]
    return len(splits) > 1 and all(splits) and {"train", "test"} in splits


def _official(root: Path) -> Iterator[tuple[str, str]]:
    """Published data sets that `root` may be: the folder that an archive unpacks to, or the one
    above it.
    """
    tops = (
        ("cub200", "CUB_200_2011", "images.txt"),
        ("tiny_imagenet", "tiny-imagenet-200", "wnids.txt"),
    )
    for stream, top, mark in tops:
        if (root / mark).is_file():
            yield stream, mark
        if (root / top / mark).is_file():
            yield stream, f"{top}/{mark}"
    if "cifar-100-python" in (root.name, *subdirectories(root)):
        yield "cifar100", "cifar-100-python"
    for variant in (imagenet_r.VARIANT, imagenet_a.VARIANT):
        if (root / variant.top).is_dir():
            yield variant.name, f"{variant.top}/"
    yield from _wnid_folders(root)
    shards = parquet.shards(root, PARQUET_DIRECTORIES)
    if shards:
        first_file = next(iter(shards.values()))[0]
        is_cifar = "fine_label" in _columns(first_file)
        for stream in ("cifar100",) if is_cifar else PARQUET_STREAMS:
            yield stream, "parquet files"


def _wnid_folders(root: Path) -> Iterator[tuple[str, str]]:
    """ImageNet-R and ImageNet-A have the same kind of folders; the first one distinguishes them."""
    names = wnid_folders(root)
    variants = (imagenet_r.VARIANT, imagenet_a.VARIANT)
    fitting = [variant for variant in variants if names[:1] == [variant.first_wnid]] or variants
    if names:
        yield from ((variant.name, WNID_MARK) for variant in fitting)


def _columns(path: Path) -> list[str]:
    """The columns of a parquet file; none if it cannot be read, which the stream reports."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_schema
    except ImportError:
        return []
    try:
        return read_schema(path).names
    except (ArrowException, OSError):
        return []
