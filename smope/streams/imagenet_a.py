"""ImageNet-A (Hendrycks et al. 2021, arXiv 1907.07174): 7,500 photographs that ImageNet models get
wrong.
"""

from __future__ import annotations

from typing import Annotated

from smope.declare.ranges import AtLeast
from smope.declare.texts import ImageFolder
from smope.streams.archives.download import Archive
from smope.streams.imagenet_variants import Variant, read_variant, split_without_lists
from smope.streams.source import Source

VARIANT = Variant(
    name="imagenet_a",
    title="ImageNet-A",
    top="imagenet-a",
    # md5: recorded by several loaders, the owners publish none
    archive=Archive(
        url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
        filename="imagenet-a.tar",
        md5="c3e55429088dc681f30d81f4726b6595",
        size=687552512,
    ),
    num_images=7_500,
    first_wnid="n01498041",
)


def load(
    root: ImageFolder, split_seed: Annotated[int, AtLeast(0)] = 0, download: bool = False
) -> Source:
    """ImageNet-A; class ids follow the sorted wnids.

    The data set has no official split. Folders train and test, as PILOT's copy has them, are used
    as they are. Elsewhere 20 % of each class are drawn for testing. `facts` say which, with a hash
    (split_hash).

    Args:
        root: folder that holds the unpacked archive, class folders or parquet files.
        split_seed: draws the test images.
        download: fetch the official archive into `root` where it holds none of these.

    Raises:
        UserError: names stream.root, what is wrong with it and what is accepted.
    """
    contents = read_variant(VARIANT, root, download)
    return split_without_lists(VARIANT, contents, split_seed)
