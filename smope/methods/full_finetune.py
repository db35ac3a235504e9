"""Sequential fine-tuning of the whole network: how much a pretrained ViT forgets."""

from __future__ import annotations

from typing import Annotated, Any

from smope.backbones.vit import Backbone
from smope.declare.ranges import Positive
from smope.methods.base import Method, Reference


class FullFinetune(Method):
    """Trains the backbone and the classifier on each task; only the classes of the task compete.

    The backbone stays in evaluation mode: no dropout and no stochastic depth. (timm's ViTs have
    both at 0 by default.) Its weights are part of trained_state(), and so of every checkpoint.

    Args:
        backbone: the ViT; it is unfrozen.
        backbone_rate_factor: learning rate of the backbone, as a multiple of the classifier's. At
            the classifier's own rate a few steps undo the pretraining. SLCA (Zhang et al. 2023,
            arXiv 2303.05118) takes a hundredth.
    """

    reference = Reference(
        "the naive lower bound", "the whole backbone and the classifier, one task after another"
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        backbone_rate_factor: Annotated[float, Positive()] = 0.01,
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
