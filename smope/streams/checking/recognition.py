"""Which stream a folder or file looks like, by the marks of its layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smope.errors import UserError
from smope.streams import folder, imagenet_a, imagenet_r
from smope.streams.imagenet_variants import wnid_folders
from smope.streams.layouts import parquet

LAYOUTS = (
    "train/<class>/ and test/<class>/, the same in a folder for each domain, a .csv table, and "
    "what the archives of CIFAR-100, CUB-200, ImageNet-R, ImageNet-A and Tiny-ImageNet unpack to"
)
PARQUET_PLACES = ("data", "cifar100", "test")
PARQUET_STREAMS = ("imagenet_r", "imagenet_a", "cub200", "tiny_imagenet")


def recognise(root: Path) -> tuple[str, str]:
    """The stream that `root` looks like, and its mark.

    UserError where it may be several or is none that is known.
    """
    if not root.exists():
        raise UserError(f"ROOT={root} does not exist; check the path")
    found = dict(_marks(root))
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        choices = " or ".join(f"stream={stream} ({mark})" for stream, mark in found.items())
        raise UserError(f"ROOT={root} may be several data sets; say which with {choices}")
    near = folder.better_root(root, lambda place: any(_marks(place))) if root.is_dir() else ""
    way_out = (
        near.replace("stream.root=", "ROOT=")
        or f"; recognised are {LAYOUTS}; say stream=NAME for others"
    )
    raise UserError(
        f"ROOT={root} is no data set that is recognised: it {_what_is_there(root)}{way_out}"
    )


def _what_is_there(root: Path) -> str:
    if not root.is_dir():
        return "is a file"
    names = folder.visible(root)
    return f"holds {folder.shortened(names)}" if names else "is empty"


def _marks(root: Path) -> Iterator[tuple[str, str]]:
    """Streams that fit `root` and by which mark; class folders and domains only where no official
    archive fits.
    """
    if not root.is_dir():
        if root.suffix.lower() == ".csv":
            yield "table", "a .csv file"
        return
    official = dict(_official(root))
    if official:
        yield from official.items()
    elif folder.has_layout(root):
        yield "folder", "class folders in train/ and test/"
    elif _holds_domains(root):
        yield "domains", "train/ and test/ in each of its folders"


def _holds_domains(root: Path) -> bool:
    """Whether the folders in `root` are domains, of which some may lack a half: that is for the
    stream to say.
    """
    halves = [
        set(folder.subdirectories(root / name)) & {"train", "test"}
        for name in folder.subdirectories(root)
    ]
    return len(halves) > 1 and all(halves) and {"train", "test"} in halves


def _official(root: Path) -> Iterator[tuple[str, str]]:
    """What the archives of published data sets unpack to: `root` may be that folder or the one
    above it.
    """
    tops = (
        ("cub200", "CUB_200_2011", "images.txt"),
        ("tiny_imagenet", "tiny-imagenet-200", "wnids.txt"),
    )
    for stream, top, mark in tops:
        for place, text in ((root, mark), (root / top, f"{top}/{mark}")):
            if (place / mark).is_file():
                yield stream, text
    if "cifar-100-python" in (root.name, *folder.subdirectories(root)):
        yield "cifar100", "cifar-100-python"
    for variant in (imagenet_r.VARIANT, imagenet_a.VARIANT):
        if (root / variant.top).is_dir():
            yield variant.name, f"{variant.top}/"
    yield from _wnid_folders(root)
    shards = parquet.shards(root, PARQUET_PLACES)
    if shards:
        is_cifar = "fine_label" in _columns(next(iter(shards.values()))[0])
        yield from (
            (stream, "parquet files") for stream in (("cifar100",) if is_cifar else PARQUET_STREAMS)
        )


def _wnid_folders(root: Path) -> Iterator[tuple[str, str]]:
    """The two variants of ImageNet have folders of the same kind, and differ in the first of them."""
    names = wnid_folders(root)
    variants = (imagenet_r.VARIANT, imagenet_a.VARIANT)
    fitting = [variant for variant in variants if names[:1] == [variant.first_wnid]] or variants
    if names:
        yield from ((variant.name, "folders n########") for variant in fitting)


def _columns(path: Path) -> list[str]:
    """The columns of a parquet file; none where it cannot be read, which is for the stream to say."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_schema
    except ImportError:
        return []
    try:
        return read_schema(path).names
    except (ArrowException, OSError):
        return []
