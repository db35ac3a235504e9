"""OVOR: one prompt for all tasks, and a classifier held back by virtual outliers.

Huang et al., ICLR 2024, arXiv 2402.04129, after their public program, whose OnePrompt has the
places of DualPrompt (5 + 5 rows in the first two blocks, 20 + 20 in the next three) and no pool,
hence no query and a single forward pass. The last fifth of a task's epochs trains the classifier
alone, on the features of that task and on outliers: the energy -logsumexp(logits) of the task's
classes is pushed below one threshold for features, and above another for outliers. It has an
optimizer of its own; the program keeps that of the prompt, and its moments.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.distributed import collectives
from smope.losses.classification import task_cross_entropy
from smope.losses.outliers import energy_loss, far_from, shifted
from smope.methods._shared.prefix_method import Choice, PrefixMethod
from smope.methods.base import Card, Coupling, Phase, TaskSpan
from smope.prompts.pool import new_prompts
from smope.prompts.prefix import prefixes


class OVOR(PrefixMethod):
    """The same prompt for every image, and virtual outlier regularisation.

    g_blocks, g_length, e_blocks, e_length: where the prompt joins, and its keys (and as many
        values) there.
    outlier_share:      of a task's epochs, the last ones, that train the classifier with outliers,
                        rounded to whole
                        epochs: at least one, and at least one is left for the prompt. 0: OnePrompt,
                        which is also all that a single epoch a task leaves room for
                        (trainer=online), WHATEVER THE SHARE.
    outlier_source:     "code": noise round the origin, of which the farthest from the features are
                        taken (the program
                        computes points on the border of the features, and does not use them);
                        "paper": noise round features on their border.
    outlier_noise:      standard deviation of that noise.
    outliers:           for each batch, of `candidates` drawn. The program's 40 are for each class
                        of the task and for
                        an epoch, dealt to its batches of 128: about 10 a batch on CIFAR-100, 42 on
                        ImageNet-R and 160 on CUB-200 in 10 tasks, but copies: each of its 600
                        candidates is there 50 times, and the farthest come with all their copies.
                        The loss is a mean over outliers.
    neighbours:         k; how far a candidate is, and whether a feature is on the border, is told
                        by the k-th nearest
                        feature of the batch (the program: of the whole task, scaled to length 1 as
                        here).
    feature_threshold, outlier_threshold, outlier_weight: see losses/outliers.py.
    prompt_rate_factor: the prompt's learning rate over the classifier's.
    """

    card = Card(
        "Huang et al. 2024, arXiv 2402.04129, and its program",
        "one forward pass; outliers are chosen anew for each batch by its own features, 40 a "
        "batch, where the program "
        "chooses them once an epoch by all of the task's, 40 a class (with repetitions), and "
        "deals them to the batches",
        published_parameters=0.26,
        published_gflops=(33.72, 33.72),
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        g_length: int = 5,
        e_length: int = 20,
        g_blocks: list[int] | None = None,
        e_blocks: list[int] | None = None,
        outlier_share: float = 0.2,
        outlier_source: Literal["code", "paper"] = "code",
        outlier_noise: float = 0.1,
        outliers: int = 40,
        candidates: int = 600,
        neighbours: int = 50,
        feature_threshold: float = -15.0,
        outlier_threshold: float = -3.0,
        outlier_weight: float = 0.1,
        prompt_rate_factor: float = 1.0,
        align: bool = False,
        centroids: int = 1,
    ) -> None:
        g_blocks = [0, 1] if g_blocks is None else g_blocks
        e_blocks = [2, 3, 4] if e_blocks is None else e_blocks
        super().__init__(
            backbone,
            num_classes,
            [*g_blocks, *e_blocks],
            align=align,
            centroids=centroids,
            prompt_rate_factor=prompt_rate_factor,
            key="method.g_blocks and method.e_blocks together",
        )
        self.outlier_share = outlier_share
        self.outlier_source = outlier_source
        self.outlier_noise = outlier_noise
        self.outliers = outliers
        self.candidates = candidates
        self.neighbours = neighbours
        self.thresholds = (feature_threshold, outlier_threshold)
        self.outlier_weight = outlier_weight
        self.general = new_prompts(len(g_blocks), 1, g_length, self.width, low=0.0)
        self.expert = new_prompts(len(e_blocks), 1, e_length, self.width, low=0.0)
        self._with_outliers = False

    @property
    def queried(self) -> bool:
        return False

    def needs_whole_batch(self) -> Coupling | None:
        """Which candidates are outliers is told by the features of the batch. (So it says even
        where trainer.epochs=1 leaves no phase for outliers: then method.outlier_share=0 is the same
        run.)
        """
        if self.outlier_share > 0:
            return Coupling(
                f"method.outlier_share={self.outlier_share:g}", "method.outlier_share=0"
            )
        return super().needs_whole_batch()

    def phases(self, task: TaskSpan, epochs: int, dense_epochs: int) -> list[Phase]:
        """Both phases follow one schedule over all epochs.

        Of two or more, each phase has one at least.
        """
        last = (
            min(max(1, round(self.outlier_share * epochs)), epochs - 1)
            if self.outlier_share > 0
            else 0
        )
        first = Phase("train", epochs - last, 0, epochs)
        return [first, Phase("outliers", last, epochs - last, epochs)] if last else [first]

    def begin_phase(self, phase: Phase) -> None:
        self._with_outliers = phase.name == "outliers"

    def choose(self, query: Tensor) -> Choice:
        return Choice(
            [
                prefix
                for prompts in (self.general, self.expert)
                for prefix in prefixes(prompts.expand(-1, -1, len(query), -1, -1))
            ]
        )

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        if not self._with_outliers:
            return super().losses(images, labels, task)
        with torch.no_grad():
            features = self.features(images).to(self.classifier.weight.dtype)
        with torch.autocast(images.device.type, enabled=False):
            classes = torch.tensor(task.classes, device=labels.device)
            logits, outlier_logits = self.classify(features), self._classify_outliers(features)
            held = energy_loss(logits[:, classes], outlier_logits[:, classes], *self.thresholds)
            cross_entropy = task_cross_entropy(logits, labels, task.classes)
        return {"cross_entropy": cross_entropy, "outliers": self.outlier_weight * held}

    def _classify_outliers(self, features: Tensor) -> Tensor:
        """Logits of outliers, which are chosen by the features of all of the batch."""
        return self.classify(self._make_outliers(collectives.gathered(features)))

    def _make_outliers(self, features: Tensor) -> Tensor:
        """features (B, C) -> (outliers, C)."""
        directions = F.normalize(features, dim=-1)
        if self.outlier_source == "paper":
            border = features[far_from(directions, directions, self.neighbours, self.outliers)]
            drawn = shifted(border, self.outlier_noise, self.candidates)
            # In the paper all is measured on the sphere.
            return drawn[
                far_from(F.normalize(drawn, dim=-1), directions, self.neighbours, self.outliers)
            ]
        drawn = shifted(torch.zeros_like(features[:1]), self.outlier_noise, self.candidates)
        return drawn[far_from(drawn, directions, self.neighbours, self.outliers)]
