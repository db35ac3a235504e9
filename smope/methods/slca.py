"""SLCA: the whole network learns slowly, and the classifier is aligned (Zhang et al. 2023, ICCV).

After the authors' code (arXiv 2303.05118). Features of old classes drift, and nothing corrects
their Gaussians: the learning rate is low enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import Positive, Share
from smope.methods._shared.aligned_part import AlignedPart
from smope.methods._shared.class_gaussians import ClassGaussians
from smope.methods.base import AlignableClassifier, Batches, Reference, TaskSpan
from smope.methods.full_finetune import FullFinetune


class SLCA(FullFinetune):
    """Trains backbone and classifier on each task, and aligns the classifier on class Gaussians.

    Class Gaussians need num_classes · C² numbers; see class_gaussians.py.

    Args:
        backbone: the ViT; it is unfrozen.
        backbone_rate_factor: learning rate of the backbone, as a multiple of the classifier's.
        temperature: of the logits in the alignment; see NormalisedLogits.
        shrink: older classes are drawn closer to the origin; see ClassGaussians.
        align: retrain the classifier on samples of all classes after each task from the second on.
    """

    reference = Reference(
        "Zhang et al. 2023, arXiv 2303.05118, and the authors' code",
        "the whole backbone is trained",
    )
    statistics: ClassGaussians

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        backbone_rate_factor: Annotated[float, Positive()] = 0.01,
        temperature: Annotated[float, Positive()] = 0.1,
        shrink: Annotated[float, Share(with_1=False)] = 0.1,
        align: bool = True,
    ) -> None:
        super().__init__(backbone, num_classes, backbone_rate_factor=backbone_rate_factor)
        self.align = align
        self.statistics = ClassGaussians(num_classes, backbone.embed_dim, shrink, recorded=align)
        self._alignable = NormalisedLogits(self, temperature)

    def aligned(self) -> Sequence[AlignableClassifier]:
        return [self._alignable] if self.align else []

    def own_passes(self, task: TaskSpan) -> int:
        return 0

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        self.statistics.task[list(task.classes)] = task.index


class NormalisedLogits(AlignedPart):
    """A method whose logits h have the same length in each alignment step.

    They are divided by temperature · the mean over tasks t of |h_t|, where h_t are the logits of
    the known classes of t.

    Args:
        method: its classifier is aligned.
        temperature: 0.1 in the authors' code.
    """

    def __init__(self, method: SLCA, temperature: float) -> None:
        super().__init__(method)
        self.temperature = temperature

    def classify(self, features: Tensor) -> Tensor:
        """features (B, C) -> logits (B, num_classes)."""
        logits, known = self.method.classify(features), self.statistics.known[:, 0]
        belongs = F.one_hot(self.statistics.task[known])  # (known classes, tasks)
        belongs = belongs[:, belongs.any(0)].to(logits)
        lengths = (logits[:, known].square() @ belongs).sqrt() + 1e-7
        return logits / (self.temperature * lengths.mean(-1, keepdim=True))
