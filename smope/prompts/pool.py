"""A pool of prompts that images share, and the choice of each image's prompts from it.

Shapes: L prompted blocks, M prompts in the pool, P length of a prompt (P keys and P values),
W = H·D width of a prompt (H heads, D head width), B images, K prompts of an image, C feature width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AuthorsBug = Literal["none", "reshape", "vote", "reshape_and_vote"]
"""Two faults of published code, for comparison only: THEY LET IMAGES OF A BATCH AFFECT EACH OTHER.

reshape: (keys or values, image) is reshaped to (image, keys or values) without a permutation; see
    `mixed_up`.
vote: all images of a batch get the prompts that most of them chose; see `vote`.
"""


def new_prompts(
    blocks: int, number: int, length: int, width: int, low: float = -1.0
) -> nn.Parameter:
    """New prompts, uniform from `low` to 1.

    Args:
        blocks: L.
        number: M.
        length: P.
        width: W.
        low: Lower end of the uniform distribution.

    Returns:
        (L, 2, M, P, W); [:, 0] are keys, [:, 1] values.
    """
    return nn.Parameter(torch.empty(blocks, 2, number, length, width).uniform_(low, 1))


def new_keys(number: int, width: int, low: float = -1.0) -> nn.Parameter:
    """New keys of prompts, (number, width), that is (M, C), uniform from `low` to 1."""
    return nn.Parameter(torch.empty(number, width).uniform_(low, 1))


def similarities(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine of each image's query (B, C) with each prompt's key (M, C) -> (B, M)."""
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).transpose(-2, -1)


def pick(prompts: Tensor, ids: Tensor, bug: AuthorsBug = "none") -> Tensor:
    """The prompts of each image, concatenated.

    Args:
        prompts: (L, 2, M, P, W).
        ids: (B, K), the prompts that each image chose.
        bug: With "reshape", images get keys and values of other images.

    Returns:
        (L, 2, B, K·P, W).
    """
    picked = prompts.index_select(2, ids.flatten()).unflatten(2, ids.shape).flatten(3, 4)
    return mixed_up(picked) if "reshape" in bug else picked


def best(scores: Tensor, top_k: int, bug: AuthorsBug = "none") -> Tensor:
    """The K best prompts of each image.

    Args:
        scores: (B, M).
        top_k: K.
        bug: With "vote", all images get the prompts that most of them chose.

    Returns:
        (B, K) ids, best first.
    """
    ids = scores.topk(top_k, dim=-1).indices
    return vote(ids, scores.shape[-1]) if "vote" in bug else ids


def pull(scores: Tensor, ids: Tensor) -> Tensor:
    """The loss that pulls the keys of chosen prompts towards their images (Wang et al. 2022, L2P).

    Args:
        scores: (B, M), cosines of queries and keys.
        ids: (B, K), the chosen prompts.

    Returns:
        A scalar: sum of 1 - cosine over the K chosen prompts, mean over images.
    """
    return (1 - scores.gather(-1, ids)).sum(-1).mean()


def mixed_up(picked: Tensor) -> Tensor:
    """The faulty reshape of DualPrompt's PyTorch port and its successors, (L, 2, B, P, W) -> same.

    In the row key 0 .. key B - 1, value 0 .. value B - 1, image i gets the numbers 2i and 2i + 1,
    which belong to other images. With a batch of one image, the result is correct.
    """
    blocks, two, images, *rest = picked.shape
    return picked.reshape(blocks, images, two, *rest).transpose(1, 2)


def vote(ids: Tensor, number: int) -> Tensor:
    """Every image gets the K prompts that the batch chose most often.

    Args:
        ids: (B, K), what each image chose.
        number: M.

    Returns:
        (B, K), the same row for all images.
    """
    counts = torch.bincount(ids.flatten(), minlength=number)
    return counts.topk(ids.shape[-1]).indices.expand_as(ids)
