"""L2P: a pool of prompts for all tasks; each image uses those whose keys are closest to its query.

Wang et al., CVPR 2022, arXiv 2112.08654; as L2P++, with prefixes instead of tokens, in Smith et
al., CVPR 2023 (CODA-Prompt, arXiv 2211.13218). Sizes here add up to the published numbers of
parameters: one set of keys, and `length` keys and as many values for each prompt. (In the public
code of CODA-Prompt each block has its own keys and half as many prompt rows.) The pull of keys
towards queries is a mean over images, as in L2P. (The code of CODA-Prompt takes all pairs.)
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Range
from smope.errors import UserError
from smope.methods._shared.prefix_method import Choice, PrefixMethod
from smope.methods.base import Reference
from smope.prompts.pool import AuthorsBug, best, new_keys, new_prompts, pick, pull, similarities
from smope.prompts.prefix import prefixes


class L2P(PrefixMethod):
    """Prompts chosen by the cosine of key and query.

    Args:
        pool_size: number of prompts.
        length: keys of a prompt in a block, and as many values.
        top_k: prompts of an image.
        blocks: where the prompts join; all blocks use the same prompts of the pool. None: the first
            block.
        pull_weight: of the loss 1 - cosine, summed over chosen keys; no other loss moves keys.
        prompt_rate_factor: learning rate of the prompts, as a multiple of the classifier's.
        authors_bug: faults of published code, for comparison only: IMAGES LEAK INTO EACH OTHER
            (prompts/pool.py).

    Raises:
        UserError: top_k is larger than the pool.
    """

    reference = Reference(
        "Wang et al. 2022, arXiv 2112.08654; L2P++ of Smith et al. 2023, arXiv 2211.13218",
        "two forward passes an image, in training and evaluation: the first gives the query",
    )

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        pool_size: Annotated[int, AtLeast(1)] = 30,
        length: Annotated[int, AtLeast(1)] = 20,
        top_k: Annotated[int, AtLeast(1)] = 5,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        pull_weight: Annotated[float, NotNegative()] = 0.1,
        prompt_rate_factor: Annotated[float, Positive()] = 1.0,
        align: bool = False,
        centroids: Annotated[int, Range(1, 1000)] = 1,
        authors_bug: AuthorsBug = "none",
    ) -> None:
        blocks = self._default_blocks() if blocks is None else blocks
        super().__init__(
            backbone,
            num_classes,
            blocks,
            align=align,
            centroids=centroids,
            prompt_rate_factor=prompt_rate_factor,
        )
        if not 1 <= top_k <= pool_size:
            raise UserError(
                f"method.top_k must be in 1..method.pool_size={pool_size}, got {top_k}; lower it"
            )
        self.top_k = top_k
        self.pull_weight = pull_weight
        self.authors_bug: AuthorsBug = authors_bug
        self.prompts = new_prompts(len(blocks), pool_size, length, self.width, low=0.0)
        self.keys = new_keys(pool_size, backbone.embed_dim, low=0.0)

    @staticmethod
    def _default_blocks() -> list[int]:
        return [0]

    def choose(self, query: Tensor) -> Choice:
        scores = similarities(query, self.keys)
        ids = best(scores, self.top_k, self.authors_bug)
        rows = pick(self.prompts, ids, self.authors_bug)
        return Choice(prefixes(rows), {"pull": self.pull_weight * pull(scores, ids)})
