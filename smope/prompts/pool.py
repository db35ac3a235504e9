"""A pool of prompts that images share, and picking each image's from it.

Shapes: L prompted blocks, M prompts, P length (so many keys and so many values), W = H·D width of a
prompt, B images, K prompts an image, C feature width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AuthorsBug = Literal["none", "reshape", "vote", "reshape_and_vote"]
"""Two faults of published programs, for comparison only: WITH THEM AN IMAGE GETS WHAT BELONGS TO
OTHERS OF ITS BATCH.

reshape: (keys or values, image) is reshaped to (image, keys or values) without a permutation (see
    `mixed_up`).
vote:    the whole batch gets the prompts that most of its images chose (see `vote`).
"""


def new_prompts(
    blocks: int, number: int, length: int, width: int, low: float = -1.0
) -> nn.Parameter:
    """(L, 2, M, P, W), [:, 0] keys and [:, 1] values, uniform from `low` to 1."""
    return nn.Parameter(torch.empty(blocks, 2, number, length, width).uniform_(low, 1))


def new_keys(number: int, width: int, low: float = -1.0) -> nn.Parameter:
    """(M, C), uniform from `low` to 1."""
    return nn.Parameter(torch.empty(number, width).uniform_(low, 1))


def similarities(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine of each image's query (B, C) with each key (M, C) -> (B, M)."""
    return F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).mT


def pick(prompts: Tensor, ids: Tensor, bug: AuthorsBug = "none") -> Tensor:
    """Each image's prompts, one after the other: prompts (L, 2, M, P, W), ids (B, K) -> (L, 2, B,
    K·P, W).
    """
    picked = prompts.index_select(2, ids.flatten()).unflatten(2, ids.shape).flatten(3, 4)
    return mixed_up(picked) if "reshape" in bug else picked


def best(scores: Tensor, top_k: int, bug: AuthorsBug = "none") -> Tensor:
    """The K best prompts of each image, best first; scores (B, M) -> ids (B, K)."""
    ids = scores.topk(top_k, dim=-1).indices
    return vote(ids, scores.shape[-1]) if "vote" in bug else ids


def pull(scores: Tensor, ids: Tensor) -> Tensor:
    """How far the chosen keys are from their images: sum over the K chosen of 1 - cosine, mean
    over images.
    """
    return (1 - scores.gather(-1, ids)).sum(-1).mean()


def mixed_up(picked: Tensor) -> Tensor:
    """The reshape that the programs after DualPrompt's PyTorch port have: (L, 2, B, P, W) -> the
    same shape.

    Of the keys and values in a row (key 1 .. key B, value 1 .. value B), image i is given numbers
    2i and 2i + 1, other images' ones. A batch of one image is as it should be.
    """
    blocks, two, images, *rest = picked.shape
    return picked.reshape(blocks, images, two, *rest).transpose(1, 2)


def vote(ids: Tensor, number: int) -> Tensor:
    """Batch-wise voting: every image gets the K prompts that were chosen most often in the batch;
    (B, K) -> (B, K).
    """
    counts = torch.bincount(ids.flatten(), minlength=number)
    return counts.topk(ids.shape[-1]).indices.expand_as(ids)
