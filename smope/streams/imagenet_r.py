"""ImageNet-R (Hendrycks et al. 2021, arXiv 2006.16241): 30,000 renditions of 200 ImageNet classes.

The data set has no split. Papers on continual learning use the one published with CODA-Prompt
(24,000 images for training, 6,000 for testing), two YAML files that SMoPE's authors use unchanged.
"""

from __future__ import annotations

import logging
from pathlib import Path

from smope.errors import UserError
from smope.streams import imagenet_variants
from smope.streams.archives.download import Archive
from smope.streams.imagenet_variants import Found, Variant
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
    root: str, split_lists: str | None = None, split_seed: int = 0, download: bool = False
) -> Source:
    """ImageNet-R under `root`; see imagenet_variants.py for the layouts.

    The split is that of the published lists in the folder `split_lists`, or, where it is None, of
    those that lie in `root` or among the class folders; without lists it is the one of the folders
    train and test; without these, 20 % of each class are drawn with `split_seed` for testing.
    `facts` say which, with a hash (split_hash), and whether lists are the published ones, targets
    included.

    Class ids with lists are the lists' targets. The published ones are in no order, and
    class_order=paper shuffles that numbering, so the papers' tasks need the lists. Without them
    class ids follow the sorted wnids, as in programs that read class folders (PILOT).

    UserError naming stream.root or stream.split_lists, also where a listed image is not there;
    images that are not listed are left out with a warning.
    """
    found = imagenet_variants.find(VARIANT, root, download)
    directory = _lists_directory(root, split_lists, found)
    if directory is None:
        splits, facts = imagenet_variants.drawn(found, split_seed)
        return imagenet_variants.divided(VARIANT, found, splits, found.wnids, facts)
    return _from_lists(root, directory, found)


def _lists_directory(root: str, given: str | None, found: Found) -> Path | None:
    if given is not None:
        return Path(given).expanduser()
    places = (Path(root).expanduser(), found.directory)
    return next((place for place in places if holds_lists(place)), None)


def _from_lists(root: str, directory: Path, found: Found) -> Source:
    lists = read_lists(directory)
    splits = [lists.splits.get(item.place) for item in found.items]
    missing = sorted(set(lists.splits) - {item.place for item in found.items})
    if missing:
        raise UserError(
            f"stream.root={root}: {len(missing):,} of the {len(lists.splits):,} images listed in "
            f"{directory} are not "
            f"in {found.directory}, the first is {missing[0]}; unpack {VARIANT.archive.filename} "
            f"again, or give "
            "lists of these images as stream.split_lists"
        )
    if len(lists.wnids) != len(found.wnids):
        raise UserError(
            f"stream.split_lists={directory}: {len(lists.wnids)} of the {len(found.wnids)} "
            f"classes are listed; "
            "give lists of all classes"
        )
    unlisted = splits.count(None)
    if unlisted:
        _log.warning(
            "stream.split_lists=%s: %s images are in neither list and left out",
            directory,
            f"{unlisted:,}",
        )
    facts = {"split": "published lists" if lists.content_hash == PUBLISHED_HASH else "other lists"}
    return imagenet_variants.divided(VARIANT, found, splits, lists.wnids, facts)
