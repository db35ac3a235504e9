"""Joint training on the images of all tasks so far: an upper bound for methods without old
images.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import Positive
from smope.losses.classification import task_cross_entropy
from smope.methods.base import Method, Reference, TaskSpan


class Joint(Method):
    """At each task, trains on the images of all tasks so far; all their classes compete.

    The budget is that of a sequential run: as many steps for a task, with batches of the same size.
    Each epoch draws images anew from all those seen, none twice. Training continues from the task
    before, so after the last task the network has taken the steps of the whole sequence. The
    diagonal of the accuracy matrix minus that of another method is that method's intransigence
    (Chaudhry et al. 2018, arXiv 1801.10112).

    All training images are needed until the end: memory grows with the stream.

    Args:
        trained: "all" trains the backbone and the classifier, "classifier" the classifier on frozen
            features.
        backbone_rate_factor: learning rate of the backbone, as a multiple of the classifier's; see
            full_finetune.py.
    """

    reference = Reference(
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
        backbone_rate_factor: Annotated[float, Positive()] = 0.01,
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
        backbone = {
            "params": list(self.prompt_parameters()),
            "lr": self.backbone_rate_factor * learning_rate,
        }
        return [backbone, *groups]
