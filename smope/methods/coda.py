"""CODA-Prompt: an image's prompt is a sum of components, weighted by how well its attended query
fits their keys.

Smith et al., CVPR 2023, arXiv 2211.13218, after their public program. In each of the first five
blocks component m has attention a_m, key k_m (C wide) and prompt p_m; for the query q

    prompt = sum over m of cos(q * a_m, k_m) · p_m,        * element by element, no softmax.

Each task may use its own equal share of the components and all earlier ones, which are frozen. New
shares start as unit vectors orthogonal to the earlier components (the program restarts them so at
each task; in the paper, once).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.errors import UserError
from smope.methods._shared.prefix_method import Choice, PrefixMethod, check_tasks
from smope.methods.base import Card, TaskSpan
from smope.prompts.orthogonal import orthogonal_to
from smope.prompts.prefix import prefixes

EPSILON = 1e-12  # no vector is taken to be shorter, as in torch's normalize


class CODAPrompt(PrefixMethod):
    """`pool_size` components over all tasks, each with `length` keys and `length` values a block.

    ortho_weight:       of the loss that holds keys, attentions and prompts orthonormal: mean of
                        (X·Xᵀ - 1)² for the
                        components in use, each of the three, summed over blocks (the program's
                        default is 0 since new components start orthogonal; the paper's is 0.1).
    prompt_rate_factor: the components' learning rate over the classifier's.

    Parameters, for L blocks and M components: prompts (L, M, 2, P, W), keys and attentions (L, M,
    C).
    """

    card = Card(
        "Smith et al. 2023, arXiv 2211.13218, and its program",
        "two forward passes an image, in training and evaluation: the first gives the query",
        published_parameters=3.99,
        published_gflops=(67.44, 67.44),
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        pool_size: int = 100,
        length: int = 4,
        blocks: list[int] | None = None,
        ortho_weight: float = 0.0,
        prompt_rate_factor: float = 1.0,
        align: bool = False,
        centroids: int = 1,
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
        if pool_size < total_tasks:
            raise UserError(
                f"method.pool_size must be at least the number of tasks, {total_tasks}, got "
                f"{pool_size}: each task has "
                f"its share; write method.pool_size={10 * total_tasks}"
            )
        self.total_tasks = total_tasks
        self.share = pool_size // total_tasks
        self.ortho_weight = ortho_weight
        shape = (len(blocks), pool_size)
        self.prompts = nn.Parameter(torch.empty(*shape, 2, length, self.width).uniform_())
        self.keys = nn.Parameter(torch.empty(*shape, backbone.embed_dim).uniform_())
        self.attentions = nn.Parameter(torch.empty(*shape, backbone.embed_dim).uniform_())

    def check_stream(self, tasks: Sequence[TaskSpan]) -> None:
        check_tasks(self, tasks, self.total_tasks)

    @torch.no_grad()
    def begin_task(self, task: TaskSpan) -> None:
        """The new share starts orthogonal to the earlier components, in each block."""
        super().begin_task(task)
        first, stop = self.share * task.index, self.share * (task.index + 1)
        for components in (self.prompts, self.keys, self.attentions):
            for block in components.flatten(2):
                block[first:stop] = orthogonal_to(block[:first], self.share)

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts, keys and attentions of the tasks seen so far; those of earlier tasks without
        gradient.
        """
        first = self.share * int(self.task)
        stop = first + self.share
        prompts, keys, attentions = (
            torch.cat([components[:, :first].detach(), components[:, first:stop]], dim=1)
            for components in (self.prompts, self.keys, self.attentions)
        )
        return prompts, keys, attentions

    def choose(self, query: Tensor) -> Choice:
        prompts, keys, attentions = self._components()
        rows = torch.einsum("lbm,lmdpw->ldbpw", component_weights(query, keys, attentions), prompts)
        losses = {}
        if self.ortho_weight > 0:
            parts = sum(deviation(x) for x in (keys, attentions, prompts.flatten(2)))
            losses["orthogonality"] = self.ortho_weight * parts
        return Choice(prefixes(rows), losses)


def component_weights(query: Tensor, keys: Tensor, attentions: Tensor) -> Tensor:
    """cos(q * a, k) for each image and component: query (B, C), keys and attentions (L, M, C) ->
    (L, B, M).

    Two matrix products, as both the product with k and the square of the length are sums over C of
    something of the query times something of the component: no (B, M, C) tensor.
    """
    directions = keys / keys.norm(dim=-1, keepdim=True).clamp(min=EPSILON)
    along = query @ (attentions * directions).mT
    lengths = (query.square() @ attentions.square().mT).clamp(min=EPSILON**2).sqrt()
    return along / lengths


def deviation(vectors: Tensor) -> Tensor:
    """Mean squared entry of X·Xᵀ - 1 for each block's vectors X (L, M, d), summed over blocks."""
    one = torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    return (vectors @ vectors.mT - one).square().mean((-2, -1)).sum()
