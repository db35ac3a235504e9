"""RSIAT and SSIAT: one adapter in every block, tuned in every task.

SSIAT is Tan et al. 2024 (CVPR, arXiv 2403.19979), RSIAT (CVPR 2026) adds three losses on features.
Both after the code of their authors. What the two share:

    training        CosFace among the classes of the task; adapters and cosine classifier learn
    after a task    old class means move as images near them did (SDC), and the classifier is
                    retrained on samples of all class Gaussians

RSIAT's losses: in the first task, pairs of one class are pulled together and others pushed apart
(losses/representation.py). In later tasks the features f follow P(f_old), those of the network
before the task through a small residual network P, and P turns them away from old class means:
beta · mean (f - P(f_old))² + gamma · mean cosine(P(mean), P(f_old)).

Where this differs from the authors' code: P starts as the identity (its last layer is 0, with tanh
instead of a sigmoid, which is 1/2 at 0); the features before and after a task are those of the same
images, unaugmented (that code shuffles both, so that its pairs do not belong together); the
optimizer is this trainer's. As in that code, the last term has no absolute value, which the paper
has. Adapters have no biases, 9,984 parameters of 1.19 M with ViT-B/16.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Share
from smope.distributed import collectives
from smope.experts.shared import add_adapters
from smope.losses.classification import task_cosface
from smope.losses.representation import pair_loss
from smope.methods._shared.class_gaussians import in_float64
from smope.methods._shared.cosine_classifier import CosineClassifier
from smope.methods._shared.drift import semantic_shift
from smope.methods._shared.drift_corrected import DriftCorrected
from smope.methods.base import BatchDependence, Phase, Reference, TaskSpan


class RSIAT(DriftCorrected):
    """RSIAT; with representation_loss=0 it is SSIAT, with one forward pass in a training step.

    Class Gaussians need num_classes · C² numbers; see class_gaussians.py.

    Args:
        rank: of the adapters, their bottleneck.
        blocks: where adapters are; None: in every block.
        adapter_scale: what they are multiplied by.
        scale: of cosines, the largest logit.
        margin: by which CosFace lowers the cosine of the true class.
        representation_loss: multiplies the three losses on features; 0: SSIAT.
        pair_weight: of the loss on pairs, lambda.
        pair_warm_up: epochs in which its weight grows from 0.
        other_weight: of pairs of different classes in it, alpha.
        other_margin: cosine that these may have.
        follow_weight: of following P(f_old), beta.
        turn_weight: of the cosines with old class means, gamma.
        code_width: of the inner layer of P.
        projector_rate_factor: learning rate of P, as a multiple of the classifier's.
        drift_width: of the Gaussian that weights images by distance when a mean moves, sigma.
        shrink: older classes are drawn closer to the origin; see ClassGaussians.
        adapter_rate_factor: learning rate of the adapters, as a multiple of the classifier's.
        first_epochs: of the first task; None: trainer.epochs.
        align: retrain the classifier on samples of all classes after each task from the second on.
    """

    reference = Reference(
        "RSIAT, CVPR 2026, and the authors' code; SSIAT, Tan et al. 2024, arXiv 2403.19979",
        "training passes: one in the first task, two in later ones (SSIAT: one); published "
        "parameters are those of the adapters, ours count the network P and the classifier too",
        published_parameters=1.19,
    )
    learning_only = ("projector",)

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        rank: Annotated[int, AtLeast(1)] = 64,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        adapter_scale: Annotated[float, Positive()] = 0.1,
        scale: Annotated[float, Positive()] = 50.0,
        margin: Annotated[float, NotNegative()] = 0.2,
        representation_loss: Annotated[float, NotNegative()] = 1.0,
        pair_weight: Annotated[float, NotNegative()] = 0.5,
        pair_warm_up: Annotated[int, AtLeast(0)] = 4,
        other_weight: Annotated[float, NotNegative()] = 1.5,
        other_margin: Annotated[float, NotNegative()] = 0.4,
        follow_weight: Annotated[float, NotNegative()] = 3.0,
        turn_weight: Annotated[float, NotNegative()] = 1.5,
        code_width: Annotated[int, AtLeast(1)] = 384,
        projector_rate_factor: Annotated[float, Positive()] = 0.025,
        drift_width: Annotated[float, Positive()] = 4.0,
        shrink: Annotated[float, Share(with_1=False)] = 0.1,
        adapter_rate_factor: Annotated[float, Positive()] = 1.0,
        first_epochs: Annotated[int | None, AtLeast(1)] = None,
        align: bool = True,
    ) -> None:
        numbers = range(len(backbone.vit.blocks)) if blocks is None else blocks
        wrappers = add_adapters(backbone.vit, numbers, 1, rank, adapter_scale)
        super().__init__(
            backbone,
            num_classes,
            wrappers,
            align=align,
            rate_factor=adapter_rate_factor,
            shrink=shrink,
        )
        self.classifier = CosineClassifier(backbone.embed_dim, num_classes, scale)
        self.margin = margin
        self.representation_loss = representation_loss
        self.pair_weight = pair_weight
        self.pair_warm_up = pair_warm_up
        self.other_weight = other_weight
        self.other_margin = other_margin
        self.follow_weight = follow_weight
        self.turn_weight = turn_weight
        self.projector_rate_factor = projector_rate_factor
        self.drift_width = drift_width
        self.first_epochs = first_epochs
        self.projector = Projector(backbone.embed_dim, code_width) if representation_loss else None
        self._epoch = 0

    def needs_whole_batch(self) -> BatchDependence | None:
        """The loss on pairs compares an image with all others of the batch."""
        if self.representation_loss and self.pair_weight:
            setting = f"method.pair_weight={self.pair_weight:g}"
            return BatchDependence(setting, "method.pair_weight=0")
        return super().needs_whole_batch()

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        first = self.first_epochs if task.index == 0 else None
        return [Phase("train", first or epochs)]

    def begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        follows = self.projector is not None and task.index > 0
        earlier = self.earlier_features(images) if follows else None
        features = self.features(images)
        losses = {
            "cosface": task_cosface(
                self.classify(features), labels, task.classes, self.classifier.scale, self.margin
            )
        }
        if earlier is not None:
            losses |= self._following(features, earlier, task)
        elif self.projector is not None and self.pair_weight:
            losses["pairs"] = self._pairs(features, labels)
        return losses

    def _pairs(self, features: Tensor, labels: Tensor) -> Tensor:
        grown = min(1.0, self._epoch / self.pair_warm_up) if self.pair_warm_up else 1.0
        features, labels = collectives.whole_batch(features), collectives.gathered(labels)
        loss = pair_loss(features, labels, self.other_weight, self.other_margin)
        return self.representation_loss * self.pair_weight * grown * loss

    def _following(self, features: Tensor, earlier: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        assert self.projector is not None
        projected = self.projector(earlier)
        means = self.projector(self.statistics.mean[: task.start or self.num_classes, 0])
        # the mean of all cosines is the product of the mean directions
        directions = [F.normalize(rows, dim=-1).mean(0) for rows in (means, projected)]
        follow = self.representation_loss * self.follow_weight
        turn = self.representation_loss * self.turn_weight
        return {
            "follow": follow * F.mse_loss(features, projected),
            "turn": turn * (directions[0] * directions[1]).sum(),
        }

    def carry(self, before: Tensor, after: Tensor, task: TaskSpan) -> None:
        means = in_float64(self.statistics.mean[:, 0])
        shifts = semantic_shift(before, after, means, self.drift_width)
        self.statistics.carry(lambda label, mean, spread: (mean + shifts[label], spread))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        groups = super().parameter_groups(learning_rate)
        if self.projector is None:
            return groups
        rate = self.projector_rate_factor * learning_rate
        return [{"params": list(self.projector.parameters()), "lr": rate}, *groups]

    def prompt_parameters(self) -> Iterable[nn.Parameter]:
        projector = () if self.projector is None else self.projector.parameters()
        return [*super().prompt_parameters(), *projector]


class Projector(nn.Module):
    """P(x) = x + tanh(decoder(encoder(x))) for x (n, C), the identity at first.

    Args:
        width: C.
        code: width of the inner layer; those beside it have 64.
    """

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(width, 64),
            nn.GELU(),
            nn.Linear(64, code),
            nn.GELU(),
            nn.Linear(code, 64),
            nn.GELU(),
        )
        self.last = nn.Linear(64, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.inner(x)).tanh()
