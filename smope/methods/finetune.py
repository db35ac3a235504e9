"""Sequential fine-tuning of the classifier on frozen features: the baseline of every prompt
method.
"""

from __future__ import annotations

from typing import Annotated

from smope.backbones.vit import Backbone
from smope.declare.ranges import Range
from smope.methods.base import Method, Reference


class Finetune(Method):
    """Trains the linear classifier, task after task, and nothing else.

    Args:
        align: add SMoPE's classifier alignment.
    """

    reference = Reference(
        "the anchor of every comparison", "the classifier alone, one task after another"
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        align: bool = False,
        centroids: Annotated[int, Range(1, 1000)] = 1,
    ) -> None:
        super().__init__(backbone, num_classes, align=align, centroids=centroids)
