"""Sequential fine-tuning of the classifier on frozen features: the anchor that every prompt method
must beat.
"""

from __future__ import annotations

from smope.backbones.vit import Backbone
from smope.methods.base import Card, Method


class Finetune(Method):
    """Trains the linear classifier, task after task, and nothing else; `align` adds SMoPE's
    classifier alignment.
    """

    card = Card("the anchor of every comparison", "the classifier alone, one task after another")

    def __init__(
        self, backbone: Backbone, num_classes: int, *, align: bool = False, centroids: int = 1
    ) -> None:
        super().__init__(backbone, num_classes, align=align, centroids=centroids)
