"""Deep L2P++: L2P with prompts in each of the first five blocks (Smith et al., CVPR 2023, arXiv
2211.13218).
"""

from __future__ import annotations

from smope.methods.base import Reference
from smope.methods.l2p import L2P


class DeepL2P(L2P):
    """L2P in the first five blocks, which all use the same prompts of the pool; arguments: see
    L2P.
    """

    reference = Reference(
        "Smith et al. 2023, arXiv 2211.13218 (Deep L2P++)",
        "two forward passes an image, in training and evaluation: the first gives the query",
        published_parameters=4.78,
        published_gflops=(67.44, 67.44),
    )

    @staticmethod
    def _default_blocks() -> list[int]:
        return [0, 1, 2, 3, 4]
