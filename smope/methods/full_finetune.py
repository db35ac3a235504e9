"""Sequential fine-tuning of the whole network: what happens to a pretrained ViT that is trained
task after task.
"""

from __future__ import annotations

from typing import Any

from smope.backbones.vit import Backbone
from smope.methods.base import Card, Method


class FullFinetune(Method):
    """Trains the backbone and the classifier on each task's images, with only the task's classes
    competing.

    backbone_rate_factor: the backbone's learning rate over the classifier's. At the classifier's
    own rate a few steps undo the pretraining; SLCA (Zhang et al. 2023, arXiv 2303.05118) takes a
    hundredth, so the default.

    The backbone stays in evaluation mode: no dropout and no stochastic depth, which timm's ViTs
    have at 0 unless told otherwise. Its weights are part of trained_state(), and so of every
    checkpoint.
    """

    card = Card(
        "the naive lower bound", "the whole backbone and the classifier, one task after another"
    )

    def __init__(
        self, backbone: Backbone, num_classes: int, *, backbone_rate_factor: float = 0.01
    ) -> None:
        backbone.unfreeze()
        super().__init__(backbone, num_classes, align=False)
        self.backbone_rate_factor = backbone_rate_factor

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        backbone = {
            "params": list(self.prompt_parameters()),
            "lr": self.backbone_rate_factor * learning_rate,
        }
        return [backbone, *super().parameter_groups(learning_rate)]
