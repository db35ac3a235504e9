"""Joint training on the images of all tasks so far: the upper bound that a method without old
images is measured by.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from smope.backbones.vit import Backbone
from smope.losses.classification import task_cross_entropy
from smope.methods.base import Card, Method, TaskSpan


class Joint(Method):
    """Goes on training, at each task, on the images of all tasks so far, all their classes
    competing.

    The budget is that of a sequential run: as many steps a task, batches of the same size, each
    epoch with images drawn anew, none twice, from all those seen. The network goes on from the task
    before; after the last task it has taken the steps of the whole sequence. Each row of the
    accuracy matrix is that of a model that could look at everything again, and intransigence
    (Chaudhry et al. 2018, arXiv 1801.10112) is its diagonal minus another method's.

    trained:              "all", the backbone and the classifier, or "classifier", on the frozen
                          features.
    backbone_rate_factor: the backbone's learning rate over the classifier's (see full_finetune.py).

    All training images stay at hand: memory is not bounded by anything but the stream.
    """

    card = Card(
        "the upper bound",
        "sees the images of all tasks so far again, which no continual learner may",
    )
    revisits = True

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        trained: Literal["all", "classifier"] = "all",
        backbone_rate_factor: float = 0.01,
    ) -> None:
        if trained == "all":
            backbone.unfreeze()
        super().__init__(backbone, num_classes, align=False)
        self.backbone_rate_factor = backbone_rate_factor

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        return {"cross_entropy": task_cross_entropy(self(images), labels, range(task.stop))}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(learning_rate)
        if self.backbone.frozen:
            return groups
        return [
            {
                "params": list(self.prompt_parameters()),
                "lr": self.backbone_rate_factor * learning_rate,
            },
            *groups,
        ]
