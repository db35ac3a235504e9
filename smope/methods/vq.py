"""VQ-Prompt: a soft mixture of prompts is replaced by the prompt nearest to it; gradients pass
straight through.

Jiao et al., NeurIPS 2024, arXiv 2410.20444, after their public code. In each of the first five
blocks, with query q, M keys k_m and M prompts p_m:

    soft = sum over m of softmax_m(q·k_m/|k_m| / temperature) · p_m
    hard = the p_m nearest to soft

The prefix of an image is `hard`, and its gradient is that of `soft`. All tasks share the M prompts,
and none is ever frozen.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Range
from smope.methods._shared.prefix_method import Choice, PrefixMethod
from smope.methods.base import Reference
from smope.prompts.prefix import prefixes


class VQPrompt(PrefixMethod):
    """Quantised prompts.

    Parameters, for L blocks and M prompts: prompts (L, M, 2, P, W), keys (L, M, C).

    Args:
        pool_size: prompts of each block.
        length: keys of a prompt, and as many values.
        blocks: where the prompts join; None: the first five.
        temperature: of the softmax.
        soft_weight: of the loss (soft - hard)² that moves the mixture; a mean over the entries of a
            block, summed over blocks.
        hard_weight: of the same loss with the mixture fixed, which moves the prompts.
        prompt_rate_factor: learning rate of the prompts, as a multiple of the classifier's.
    """

    reference = Reference(
        "Jiao et al. 2024, arXiv 2410.20444, and the authors' code",
        "two forward passes an image, in training and evaluation: the first gives the query",
        published_parameters=0.50,
        published_gflops=(67.44, 67.44),
    )

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        pool_size: Annotated[int, AtLeast(1)] = 10,
        length: Annotated[int, AtLeast(1)] = 4,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        temperature: Annotated[float, Positive()] = 1.0,
        soft_weight: Annotated[float, NotNegative()] = 0.4,
        hard_weight: Annotated[float, NotNegative()] = 0.1,
        prompt_rate_factor: Annotated[float, Positive()] = 5.0,
        align: bool = True,
        centroids: Annotated[int, Range(1, 1000)] = 1,
    ) -> None:
        blocks = [0, 1, 2, 3, 4] if blocks is None else blocks
        super().__init__(
            backbone,
            num_classes,
            blocks,
            align=align,
            centroids=centroids,
            prompt_rate_factor=prompt_rate_factor,
        )
        self.temperature = temperature
        self.soft_weight = soft_weight
        self.hard_weight = hard_weight
        self.prompts = nn.Parameter(
            torch.empty(len(blocks), pool_size, 2, length, self.width).uniform_()
        )
        self.keys = nn.Parameter(torch.empty(len(blocks), pool_size, backbone.embed_dim).uniform_())

    def choose(self, query: Tensor) -> Choice:
        # (L, B, M)
        keys = F.normalize(self.keys, dim=-1).transpose(-2, -1)
        shares = (query @ keys / self.temperature).softmax(-1)
        soft = torch.einsum("lbm,lmdpw->ldbpw", shares, self.prompts)
        chosen = nearest(shares, self.prompts)
        blocks = torch.arange(len(chosen), device=chosen.device).unsqueeze(1)
        hard = self.prompts[blocks, chosen].transpose(1, 2)
        losses = {
            "soft": self.soft_weight * distance(soft, hard.detach()),
            "hard": self.hard_weight * distance(hard, soft.detach()),
        }
        return Choice(prefixes(soft + (hard - soft).detach()), losses)


@torch.no_grad()
def nearest(shares: Tensor, prompts: Tensor) -> Tensor:
    """The prompt nearest to each mixture.

    |soft - p_m|² = |soft|² - 2 soft·p_m + |p_m|², where soft·p_m follows from the products of
    prompts with each other. The mean of all prompts is subtracted first. That changes no distance,
    since shares add up to 1, and keeps rounding small.

    Args:
        shares: weights of the mixtures (L, B, M).
        prompts: (L, M, 2, P, W).

    Returns:
        Numbers of the prompts (L, B).
    """
    rows = prompts.flatten(2)
    rows = rows - rows.mean(1, keepdim=True)
    products = rows @ rows.transpose(-2, -1)
    squares = products.diagonal(dim1=-2, dim2=-1).unsqueeze(1)
    return (squares - 2 * shares @ products).argmin(-1)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of the entries of a block, summed over blocks (dimension 0)."""
    return (one - other).square().flatten(1).mean(1).sum()
