"""DualPrompt: G-prompts for all tasks in the first blocks, one E-prompt for each task in later
blocks.

Wang et al., ECCV 2022, arXiv 2204.04799. Default sizes add up to the published number of parameters
and are those of the PyTorch port of the authors' code on ImageNet-R: 5 keys and 5 values in a
G-prompt, 20 and 20 in an E-prompt, one key for each task and all its blocks. As in that port, the
prompt of a task starts as a copy of the one before. The port's reshape that mixes images is an
option, off by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Range
from smope.methods._shared.prefix_method import Choice, PrefixMethod, check_tasks
from smope.methods.base import Reference, TaskSpan
from smope.prompts.pool import AuthorsBug, best, new_keys, new_prompts, pick, pull, similarities
from smope.prompts.prefix import prefixes


class DualPrompt(PrefixMethod):
    """DualPrompt.

    In training an image gets the E-prompt of its task. In evaluation it gets that of the task,
    among those seen, whose key is closest to its query.

    Args:
        g_length: keys of a G-prompt in a block, and as many values.
        e_length: the same for E-prompts.
        g_blocks: where the G-prompts join; None: the first two blocks.
        e_blocks: where the E-prompts join; None: the next three.
        start_from_previous: start a task's E-prompt as the one before.
        pull_weight: of the loss 1 - cosine between the task's key and the queries.
        prompt_rate_factor: learning rate of the prompts, as a multiple of the classifier's.
        authors_bug: faults of published code, for comparison only: IMAGES LEAK INTO EACH OTHER
            (prompts/pool.py).
    """

    reference = Reference(
        "Wang et al. 2022, arXiv 2204.04799",
        "two forward passes an image, also in training, where the published count leaves out the "
        "query's: a task's prompt is known there, and the query serves its key alone",
        published_parameters=1.10,
        published_gflops=(33.72, 67.44),
    )

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        g_length: Annotated[int, AtLeast(1)] = 5,
        e_length: Annotated[int, AtLeast(1)] = 20,
        g_blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        e_blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        start_from_previous: bool = True,
        pull_weight: Annotated[float, NotNegative()] = 1.0,
        prompt_rate_factor: Annotated[float, Positive()] = 1.0,
        align: bool = False,
        centroids: Annotated[int, Range(1, 1000)] = 1,
        authors_bug: AuthorsBug = "none",
    ) -> None:
        g_blocks = [0, 1] if g_blocks is None else g_blocks
        e_blocks = [2, 3, 4] if e_blocks is None else e_blocks
        super().__init__(
            backbone,
            num_classes,
            [*g_blocks, *e_blocks],
            align=align,
            centroids=centroids,
            prompt_rate_factor=prompt_rate_factor,
            key="method.g_blocks and method.e_blocks together",
        )
        self.start_from_previous = start_from_previous
        self.pull_weight = pull_weight
        self.authors_bug: AuthorsBug = authors_bug
        # (L, 2, P, W)
        self.general = nn.Parameter(new_prompts(len(g_blocks), 1, g_length, self.width)[:, :, 0])
        self.expert = new_prompts(len(e_blocks), total_tasks, e_length, self.width)
        self.keys = new_keys(total_tasks, backbone.embed_dim)

    def check_stream(self, tasks: Sequence[TaskSpan]) -> None:
        check_tasks(self, tasks, len(self.keys))

    @torch.no_grad()
    def begin_task(self, task: TaskSpan) -> None:
        super().begin_task(task)
        if self.start_from_previous and task.index > 0:
            self.expert[:, :, task.index] = self.expert[:, :, task.index - 1]

    def choose(self, query: Tensor) -> Choice:
        scores = similarities(query, self.keys)
        if self.training:
            ids = self.task.expand(query.shape[0], 1)
        else:
            unseen = torch.arange(len(self.keys), device=query.device) > self.task
            ids = best(scores.masked_fill(unseen, -2), 1, self.authors_bug)
        general = self.general.unsqueeze(2).expand(-1, -1, query.shape[0], -1, -1)
        expert = pick(self.expert, ids, self.authors_bug)
        return Choice(
            [*prefixes(general), *prefixes(expert)], {"pull": self.pull_weight * pull(scores, ids)}
        )
