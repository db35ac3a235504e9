"""CODA-Prompt: an image's prompt is a weighted sum of components.

Smith et al., CVPR 2023, arXiv 2211.13218, after their public code. In each of the first five
blocks, component m has an attention a_m, a key k_m (both C wide) and a prompt p_m. For the query q

    prompt = sum over m of cos(q * a_m, k_m) · p_m,        * element by element, no softmax.

Each task uses its own equal share of the components and all earlier shares, which are frozen. A new
share starts as unit vectors orthogonal to the earlier components. (The public code restarts it at
each task, the paper once.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from smope.backbones.attention import exporting
from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Range
from smope.errors import UserError
from smope.methods._shared.prefix_method import Choice, PrefixMethod, check_tasks
from smope.methods.base import Reference, TaskSpan
from smope.prompts.orthogonal import orthogonal_to
from smope.prompts.prefix import prefixes

EPSILON = 1e-12  # the shortest length that is divided by, as in torch's normalize


class CODAPrompt(PrefixMethod):
    """CODA-Prompt.

    Parameters, for L blocks and M components: prompts (L, M, 2, P, W), keys and attentions (L, M,
    C).

    Args:
        pool_size: components over all tasks.
        length: keys of a component in a block, and as many values.
        blocks: where the prompts join; None: the first five.
        ortho_weight: of a loss that keeps keys, attentions and prompts orthonormal: the mean of
            (X·Xᵀ - 1)² over the components in use, for each of the three, summed over blocks. The
            public code has 0, since new components start orthogonal; the paper has 0.1.
        prompt_rate_factor: learning rate of the components, as a multiple of the classifier's.

    Raises:
        UserError: there are fewer components than tasks.
    """

    reference = Reference(
        "Smith et al. 2023, arXiv 2211.13218, and the authors' code",
        "two forward passes an image, in training and evaluation: the first gives the query",
        published_parameters=3.99,
        published_gflops=(67.44, 67.44),
    )

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        pool_size: Annotated[int, AtLeast(1)] = 100,
        length: Annotated[int, AtLeast(1)] = 4,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        ortho_weight: Annotated[float, NotNegative()] = 0.0,
        prompt_rate_factor: Annotated[float, Positive()] = 1.0,
        align: bool = False,
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
        if pool_size < total_tasks:
            raise UserError(
                f"method.pool_size must be at least the number of tasks, {total_tasks}, got "
                f"{pool_size}: each task has its share; write "
                f"method.pool_size={10 * total_tasks}"
            )
        self.total_tasks = total_tasks
        self.share = pool_size // total_tasks
        self.ortho_weight = ortho_weight
        shape = (len(blocks), pool_size)
        self.prompts = nn.Parameter(torch.empty(*shape, 2, length, self.width).uniform_())
        self.keys = nn.Parameter(torch.empty(*shape, backbone.embed_dim).uniform_())
        self.attentions = nn.Parameter(torch.empty(*shape, backbone.embed_dim).uniform_())

    @classmethod
    def settings_for_tasks(
        cls, settings: Mapping[str, Any], total_tasks: int, more: int
    ) -> dict[str, Any]:
        """Each further task gets as many components as the others."""
        share = settings["pool_size"] // total_tasks
        return {**settings, "pool_size": share * (total_tasks + more)}

    def check_stream(self, tasks: Sequence[TaskSpan]) -> None:
        check_tasks(self, tasks, self.total_tasks)

    @torch.no_grad()
    def begin_task(self, task: TaskSpan) -> None:
        """Start the new share orthogonal to the earlier components, in each block."""
        super().begin_task(task)
        first, stop = self.share * task.index, self.share * (task.index + 1)
        for components in (self.prompts, self.keys, self.attentions):
            for block in components.flatten(2):
                block[first:stop] = orthogonal_to(block[:first], self.share)

    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts, keys and attentions of the tasks so far; those of earlier tasks are detached."""
        first = self.share * int(self.task)
        stop = first + self.share
        prompts, keys, attentions = (
            torch.cat([components[:, :first].detach(), components[:, first:stop]], dim=1)
            for components in (self.prompts, self.keys, self.attentions)
        )
        return prompts, keys, attentions

    def choose(self, query: Tensor) -> Choice:
        if exporting():
            return Choice(prefixes(self._exported_rows(query)))
        prompts, keys, attentions = self._components()
        rows = torch.einsum("lbm,lmdpw->ldbpw", component_weights(query, keys, attentions), prompts)
        losses = {}
        if self.ortho_weight > 0:
            parts = sum(deviation(x) for x in (keys, attentions, prompts.flatten(2)))
            losses["orthogonality"] = self.ortho_weight * parts
        return Choice(prefixes(rows), losses)

    def _exported_rows(self, query: Tensor) -> Tensor:
        """What `choose` computes, with weights of 0 for later tasks: the sizes in a graph must not
        depend on the task.
        """
        weights = component_weights(query, self.keys, self.attentions)
        later = torch.arange(weights.shape[-1], device=weights.device) >= self.share * (
            self.task + 1
        )
        return torch.einsum("lbm,lmdpw->ldbpw", weights.masked_fill(later, 0.0), self.prompts)


def component_weights(query: Tensor, keys: Tensor, attentions: Tensor) -> Tensor:
    """cos(q * a, k) for each image and component.

    Both the product with k and the squared length are sums over C of a factor of the query times a
    factor of the component. Two matrix products are enough, and no (B, M, C) tensor is made.

    Args:
        query: (B, C).
        keys: (L, M, C).
        attentions: (L, M, C).

    Returns:
        The weights (L, B, M).
    """
    directions = keys / keys.norm(dim=-1, keepdim=True).clamp(min=EPSILON)
    along = query @ (attentions * directions).transpose(-2, -1)
    squares = query.square() @ attentions.square().transpose(-2, -1)
    lengths = squares.clamp(min=EPSILON**2).sqrt()
    return along / lengths


def deviation(vectors: Tensor) -> Tensor:
    """Mean squared entry of X·Xᵀ - 1 for each block's vectors X (L, M, d), summed over blocks."""
    one = torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    return (vectors @ vectors.mT - one).square().mean((-2, -1)).sum()
