"""RanPAC with its first session: a prompt is trained on the first task, ridge regression on random
features learns every task.

McDonnell et al. 2023, arXiv 2307.02251. Of the ways to adapt that the paper tries, this is its deep
visual prompt, here as keys and values of each block's attention. The values start at 0, so that the
features start near the backbone's own. method=ridge has no first session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, OrderedPair, Positive
from smope.losses.classification import task_cross_entropy
from smope.methods._shared.first_task_only import FirstSession
from smope.methods._shared.prefix_method import Choice, PrefixMethod
from smope.methods._shared.ridge_head import PenaltyRule, RidgeHead
from smope.methods.base import Reference, TaskSpan
from smope.prompts.pool import new_prompts
from smope.prompts.prefix import prefixes


class RanPAC(FirstSession, PrefixMethod):
    """One prompt for all images, trained on the first task with a linear classifier.

    Args:
        length: keys of the prompt in a block, and as many values, which start at 0.
        blocks: where the prompt joins; None: all blocks.
        prompt_rate_factor: learning rate of the prompt, as a multiple of the linear classifier's.
        width, exponents, penalty_rule: see ridge_head.RidgeHead.
    """

    reference = Reference(
        "McDonnell et al. 2023, arXiv 2307.02251 (RanPAC)",
        "a prompt learns in the first task alone; later tasks cost one forward pass an image",
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        length: Annotated[int, AtLeast(1)] = 5,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        prompt_rate_factor: Annotated[float, Positive()] = 1.0,
        width: Annotated[int | None, AtLeast(1)] = 2000,
        exponents: Annotated[Sequence[int], OrderedPair(-30, 30)] = (-8, 8),
        penalty_rule: PenaltyRule = "gcv",
    ) -> None:
        blocks = [*range(len(backbone.vit.blocks))] if blocks is None else blocks
        super().__init__(backbone, num_classes, blocks, prompt_rate_factor=prompt_rate_factor)
        self.prompt = new_prompts(len(blocks), 1, length, self.width)
        with torch.no_grad():
            self.prompt[:, 1].zero_()
        self.ridge = RidgeHead(backbone.embed_dim, num_classes, width, exponents, penalty_rule)

    @property
    def queried(self) -> bool:
        return False

    def choose(self, query: Tensor) -> Choice:
        return Choice(prefixes(self.prompt.expand(-1, -1, query.shape[0], -1, -1)))

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        logits = self.classifier(self.features(images))
        return {"cross_entropy": task_cross_entropy(logits, labels, task.classes)}
