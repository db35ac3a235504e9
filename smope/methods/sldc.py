"""SLDC: LoRA tuned in every task, and a map of features that carries class Gaussians along.

SLDC is of AAAI 2026; this follows the authors' code. The map is fitted to features of the task's
images before and after the task; _shared/drift.py has both kinds. The classifier is retrained on
samples of all Gaussians, as in SLCA++, of which this is a relative.

Where this differs from the authors' code: the down projections of LoRA start at random and not as
leading singular vectors of the weights; images for the map are not augmented; no auxiliary images
of ImageNet help to fit it (their code can do without them too); classifier and modules learn by
this trainer's optimizer and schedule.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Share
from smope.experts.shared import add_lora
from smope.losses.classification import symmetric_cross_entropy
from smope.methods._shared.class_statistics import class_noise
from smope.methods._shared.drift import carried_by_samples, fit_weakly_nonlinear, linear_map
from smope.methods._shared.drift_corrected import DriftCorrected
from smope.methods.base import Reference, TaskSpan

LINEAR_SPREAD, SAMPLED_SPREAD = 1e-2, 1e-3  # added to variances that were carried, as in the code
SAMPLES = 10  # of a Gaussian that is carried by samples, for each feature


class SLDC(DriftCorrected):
    """Sequential LoRA with drift transport.

    Class Gaussians need num_classes · C² numbers; see class_gaussians.py.

    Args:
        rank: of LoRA beside qkv and both layers of the MLP.
        blocks: where LoRA is; None: in every block.
        lora_scale: what the change of a weight is multiplied by.
        transport: "linear" (alpha_1-SLDC in the authors' code) or "weakly_nonlinear" (alpha_2).
        penalty: of the linear map, gamma_1.
        patience: images that the linear map needs, in units of C, alpha_t.
        bend_penalty: of the nonlinear part, gamma_2.
        transport_steps: to fit the weakly nonlinear map after each task.
        follow_weight: of the squared change of features from those before the task, gamma_kd.
        length_weight: of the squared change of their length, gamma_norm.
        shrink: older classes are drawn closer to the origin; see ClassGaussians. Authors' code: 0.
        lora_rate_factor: learning rate of LoRA, as a multiple of the classifier's.
        align: retrain the classifier on samples of all classes after each task from the second on.
    """

    reference = Reference(
        "SLDC, AAAI 2026, and the authors' code",
        "training passes: one in the first task, two in later ones",
    )

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        rank: Annotated[int, AtLeast(1)] = 4,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        lora_scale: Annotated[float, Positive()] = 0.8,
        transport: Literal["linear", "weakly_nonlinear"] = "weakly_nonlinear",
        penalty: Annotated[float, Positive()] = 1e-4,
        patience: Annotated[float, Positive()] = 1.0,
        bend_penalty: Annotated[float, NotNegative()] = 0.5,
        transport_steps: Annotated[int, AtLeast(1)] = 5000,
        follow_weight: Annotated[float, NotNegative()] = 1.0,
        length_weight: Annotated[float, NotNegative()] = 0.1,
        shrink: Annotated[float, Share(with_1=False)] = 0.0,
        lora_rate_factor: Annotated[float, Positive()] = 0.1,
        align: bool = True,
    ) -> None:
        numbers = range(len(backbone.vit.blocks)) if blocks is None else blocks
        wrappers = add_lora(
            backbone.vit, numbers, ["attn.qkv", "mlp.fc1", "mlp.fc2"], 1, rank, lora_scale
        )
        super().__init__(
            backbone,
            num_classes,
            wrappers,
            align=align,
            rate_factor=lora_rate_factor,
            shrink=shrink,
        )
        self.transport = transport
        self.penalty = penalty
        self.patience = patience
        self.bend_penalty = bend_penalty
        self.transport_steps = transport_steps
        self.follow_weight = follow_weight
        self.length_weight = length_weight

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        follows = task.index > 0 and (self.follow_weight or self.length_weight)
        earlier = self.earlier_features(images) if follows else None
        features = self.features(images)
        logits = self.classify(features)
        losses = {"cross_entropy": symmetric_cross_entropy(logits, labels, task.classes)}
        if earlier is not None:
            longer = features.norm(dim=-1) - earlier.norm(dim=-1)
            losses["follow"] = self.follow_weight * F.mse_loss(features, earlier)
            losses["length"] = self.length_weight * longer.square().mean()
        return losses

    def carry(self, before: Tensor, after: Tensor, task: TaskSpan) -> None:
        if self.transport == "linear":
            self._carry_linearly(linear_map(before, after, self.penalty, self.patience))
            return
        dtype = self.classifier.weight.dtype  # float64 would take twice the time
        fitted = fit_weakly_nonlinear(
            before.to(dtype), after.to(dtype), self.bend_penalty, self.transport_steps, task.index
        ).to(before)
        width = before.shape[1]
        noise = class_noise(torch.tensor([task.index]), SAMPLES * width, width)[0].to(before)

        def sampled(label: int, mean: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            root = self.statistics.root(label)
            moved, covariance = carried_by_samples(fitted, mean, root, noise)
            return moved, covariance + SAMPLED_SPREAD * torch.eye(width).to(covariance)

        self.statistics.carry(sampled)

    def _carry_linearly(self, matrix: Tensor) -> None:
        more = LINEAR_SPREAD * torch.eye(len(matrix)).to(matrix)
        self.statistics.carry(
            lambda _, mean, covariance: (mean @ matrix, matrix.T @ covariance @ matrix + more)
        )
