"""What a prediction rests on: the experts that an image used, and the classes that it is near to.

Letters: B batch, H heads, E experts of a head, K chosen experts, C feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from smope.methods._shared.routed_method import routings_of
from smope.methods.base import Method
from smope.metrics.expert_use import block_numbers
from smope.routers.base import Routing
from smope.run.artefact import Artefact

NEAREST = 5  # classes


class ChosenExperts(NamedTuple):
    """The experts of one block that an image used.

    Attributes:
        block: number of the block in the backbone, from 0.
        of: E, how many there are in each head.
        heads: for each head the numbers of the chosen experts, best first.
    """

    block: int
    of: int
    heads: tuple[tuple[int, ...], ...]


class Neighbour(NamedTuple):
    """A class, and the cosine of the image's feature and the class's mean feature."""

    class_name: str
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """What a prediction rests on.

    Attributes:
        experts: of each block with experts; empty for a method that chooses none.
        nearest: the nearest classes, best first; empty for a model that holds no class means.
    """

    experts: tuple[ChosenExperts, ...]
    nearest: tuple[Neighbour, ...]


def explained(artefact: Artefact, method: Method, features: Tensor) -> list[Explanation]:
    """Explain the predictions of a batch that a method has just passed.

    Args:
        artefact: the model.
        method: the same, in evaluation mode.
        features: (B, C), what it made of the images.
    """
    experts = _chosen_experts(artefact, method, len(features))
    nearest = _nearest(artefact, method, features)
    return [Explanation(*pair) for pair in zip(experts, nearest, strict=True)]


def _chosen_experts(
    artefact: Artefact, method: Method, images: int
) -> list[tuple[ChosenExperts, ...]]:
    """The experts of each image."""
    routings = routings_of(method)
    if not routings or routings[0].num_chosen == routings[0].scores.shape[-1]:
        return [()] * images
    blocks = block_numbers({"method": artefact.method}, len(routings))
    chosen = [_of_images(routing, images) for routing in routings]
    return [
        tuple(
            ChosenExperts(block, routing.scores.shape[-1], of_block[image])
            for block, routing, of_block in zip(blocks, routings, chosen, strict=True)
        )
        for image in range(images)
    ]


def _of_images(routing: Routing, images: int) -> list[tuple[tuple[int, ...], ...]]:
    """The chosen experts of each image and head; those that most tokens chose, where each token
    chooses for itself.
    """
    if routing.tokens is not None:
        share = routing.chosen.unflatten(0, (images, -1)).double().mean(1)  # (B, H, E)
        shares, expert_ids = share.topk(routing.num_chosen, dim=-1)
        is_chosen = shares > 0
    else:
        expert_ids, is_chosen = routing.expert_ids, routing.weights > -torch.inf
    return [
        tuple(
            tuple(expert for expert, used in zip(*pair, strict=True) if used)
            for pair in zip(*head_lists, strict=True)
        )
        for head_lists in zip(expert_ids.tolist(), is_chosen.tolist(), strict=True)
    ]


def _nearest(
    artefact: Artefact, method: Method, features: Tensor
) -> Sequence[tuple[Neighbour, ...]]:
    """The nearest classes of each image."""
    cosines = method.class_cosines(features)
    if cosines is None:
        return [()] * len(features)
    names = artefact.class_names
    best = cosines[:, : len(names)].double().topk(min(NEAREST, len(names)))
    return [
        tuple(
            Neighbour(names[label], cosine)
            for label, cosine in zip(*pair, strict=True)
            if cosine > -torch.inf
        )
        for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
