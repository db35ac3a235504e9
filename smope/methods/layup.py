"""LayUP: ridge regression on the CLS rows of several blocks (Ahrens et al. 2024, arXiv 2312.08888).

After the paper and its public code. Here nothing is trained: the paper's first session, which
adapts the backbone to the first task, is left out, as it is by default in the code. The paper
chooses λ for each task by the accuracy of four folds of its images, among half decades from 1e-4 to
1e3 and 1e-8; here it is chosen as in method=ridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, OrderedPair
from smope.methods._shared.ridge_head import PenaltyRule, RidgeHead
from smope.methods.base import Reference, TaskSpan
from smope.methods.ridge import Ridge


class LayUP(Ridge):
    """A ridge classifier on the CLS rows of the last blocks, side by side; no random features.

    The rows are those before the ViT's last norm.

    Args:
        layers: number of blocks; all of them in a backbone that has fewer.
        exponents, penalty_rule: see ridge_head.RidgeHead.
    """

    reference = Reference(
        "Ahrens et al. 2024, arXiv 2312.08888 (LayUP), and the authors' code",
        "one pass over frozen features, nothing is trained; without the paper's first session",
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        layers: Annotated[int, AtLeast(1)] = 6,
        exponents: Annotated[Sequence[int], OrderedPair(-30, 30)] = (-8, 8),
        penalty_rule: PenaltyRule = "gcv",
    ) -> None:
        super().__init__(
            backbone, num_classes, width=None, exponents=exponents, penalty_rule=penalty_rule
        )
        self.layers = min(layers, len(backbone.vit.blocks))
        features = self.layers * backbone.embed_dim
        self.classifier = RidgeHead(features, num_classes, None, exponents, penalty_rule)

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [0, 1] -> the CLS rows of the last blocks, (B, layers·C)."""
        with torch.no_grad():
            return self.backbone.cls_of_last_blocks(images, self.layers).flatten(1)

    def features_are_final(self, task: TaskSpan) -> bool:
        """The backbone never changes."""
        return True
