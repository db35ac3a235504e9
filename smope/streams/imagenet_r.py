"""ImageNet-R (Hendrycks et al. 2021, arXiv 2006.16241): 30,000 renditions of 200 ImageNet classes.

The data set has no split. Papers on continual learning use the one published with CODA-Prompt
(24,000 images for training, 6,000 for testing), two YAML files that SMoPE's authors use unchanged.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from smope.declare.ranges import AtLeast
from smope.declare.texts import ImageFolder, PathTo
from smope.errors import UserError
from smope.streams.archives.download import Archive
from smope.streams.imagenet_variants import (
    Variant,
    VariantContents,
    make_source,
    read_variant,
    split_without_lists,
)
from smope.streams.layouts.split_lists import holds_lists, read_lists
from smope.streams.source import Source

VARIANT = Variant(
    name="imagenet_r",
    title="ImageNet-R",
    top="imagenet-r",
    # md5: recorded by several loaders, the owners publish none
    archive=Archive(
        url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        filename="imagenet-r.tar",
        md5="a61312130a589d0ca1a8fca1f2bd3337",
        size=2191079936,
    ),
    num_images=30_000,
    first_wnid="n01443537",
)
# SplitLists.content_hash of CODA-Prompt's two files
PUBLISHED_HASH = "59687f4b6f4e159234450def82e4b09d9d93f490270746178113e163c4f80237"
_log = logging.getLogger(__name__)


def load(
    root: ImageFolder,
    split_lists: Annotated[str | None, PathTo("folder of split lists", "~/imagenet-r")] = None,
    split_seed: Annotated[int, AtLeast(0)] = 0,
    download: bool = False,
) -> Source:
    """ImageNet-R; `facts` say where its split comes from, with a hash (split_hash).

    With lists, class ids are the lists' targets. Those of the published lists are in no order, and
    class_order=paper shuffles that numbering, so the papers' tasks need the lists. Without lists,
    class ids follow the sorted wnids, as in programs that read class folders (PILOT); the split is
    that of the folders train and test or, where there are none, 20 % of each class are drawn for
    testing.

    Args:
        root: folder that holds the unpacked archive, class folders or parquet files.
        split_lists: folder with the two published lists; None uses lists that lie in `root` or
            among the class folders. Images that are not listed are left out, with a warning.
        split_seed: draws the test images.
        download: fetch the official archive into `root` where it holds none of these.

    Raises:
        UserError: names stream.root or stream.split_lists and what is wrong with it, also where a
            listed image is missing.
    """
    contents = read_variant(VARIANT, root, download)
    directory = _lists_directory(root, split_lists, contents)
    if directory is None:
        return split_without_lists(VARIANT, contents, split_seed)
    return _from_lists(root, directory, contents)


def _lists_directory(root: str, given: str | None, contents: VariantContents) -> Path | None:
    if given is not None:
        return Path(given).expanduser()
    candidates = (Path(root).expanduser(), contents.directory)
    return next((candidate for candidate in candidates if holds_lists(candidate)), None)


def _from_lists(root: str, directory: Path, contents: VariantContents) -> Source:
    lists = read_lists(directory)
    listed_paths = [image.listed_path for image in contents.images]
    splits = [lists.splits.get(path) for path in listed_paths]
    missing = sorted(set(lists.splits) - set(listed_paths))
    if missing:
        raise UserError(
            f"stream.root={root}: {len(missing):,} of the {len(lists.splits):,} images listed in "
            f"{directory} are not in {contents.directory}, the first is {missing[0]}; unpack "
            f"{VARIANT.archive.filename} again, or give lists of these images as "
            "stream.split_lists"
        )
    if len(lists.wnids) != len(contents.wnids):
        raise UserError(
            f"stream.split_lists={directory}: {len(lists.wnids)} of the {len(contents.wnids)} "
            "classes are listed; give lists of all classes"
        )
    unlisted = splits.count(None)
    if unlisted:
        _log.warning(
            "stream.split_lists=%s: %s images are in neither list and left out",
            directory,
            f"{unlisted:,}",
        )
    facts = {"split": "published lists" if lists.content_hash == PUBLISHED_HASH else "other lists"}
    return make_source(VARIANT, contents, splits, lists.wnids, facts)
