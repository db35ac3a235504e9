"""ImageNet-A (Hendrycks et al. 2021, arXiv 1907.07174): 7,500 photographs that ImageNet models get
wrong.
"""

from __future__ import annotations

from smope.streams import imagenet_variants
from smope.streams.archives.download import Archive
from smope.streams.imagenet_variants import Variant
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


def load(root: str, split_seed: int = 0, download: bool = False) -> Source:
    """ImageNet-A under `root`; see imagenet_variants.py for the layouts.

    The data set has no split: it is the one of folders train and test (PILOT's copy has them) or,
    elsewhere, 20 % of each class drawn with `split_seed` for testing; `facts` say which, with a
    hash (split_hash). Class ids follow the sorted wnids. UserError naming stream.root.
    """
    found = imagenet_variants.find(VARIANT, root, download)
    splits, facts = imagenet_variants.drawn(found, split_seed)
    return imagenet_variants.divided(VARIANT, found, splits, found.wnids, facts)
