"""OVOR: one prompt for all tasks, and a classifier held back by virtual outliers.

Huang et al., ICLR 2024, arXiv 2402.04129, after their public code. The prompt, OnePrompt, joins
where DualPrompt's prompts do: 5 + 5 rows in the first two blocks, 20 + 20 in the next three. There
is no pool, hence no query and only one forward pass. The last fifth of a task's epochs trains the
classifier alone, on features of that task and on outliers: the energy -logsumexp(logits) of the
task's classes is pushed below one threshold for features and above another for outliers. This phase
has its own optimizer; the public code keeps that of the prompt, with its moments.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, BlockNumbers, NotNegative, Positive, Range, Share
from smope.distributed import collectives
from smope.losses.classification import task_cross_entropy
from smope.losses.outliers import energy_loss, far_from, shifted
from smope.methods._shared.prefix_method import Choice, PrefixMethod
from smope.methods.base import BatchDependence, Phase, Reference, TaskSpan
from smope.prompts.pool import new_prompts
from smope.prompts.prefix import prefixes


class OVOR(PrefixMethod):
    """The same prompt for every image, and virtual outlier regularisation.

    Args:
        g_length: keys of the prompt in the first blocks, and as many values.
        e_length: the same in the later blocks.
        g_blocks: the first blocks with a prompt; None: the first two.
        e_blocks: the later blocks with a prompt; None: the next three.
        outlier_share: share of a task's epochs, the last ones, that train the classifier with
            outliers. It is rounded to whole epochs: at least one, and at least one is left for the
            prompt. 0 is OnePrompt. With a single epoch for each task (trainer=online) there is no
            room for outliers, WHATEVER THE SHARE.
        outlier_source: "code": noise around the origin, of which the candidates farthest from the
            features are taken. (The public code computes points on the border of the features and
            does not use them.) "paper": noise around features on their border.
        outlier_noise: standard deviation of that noise.
        outliers: taken for each batch, of `candidates` drawn. The public code has 40 for each class
            of the task and epoch, divided among its batches of 128: about 10 for a batch on
            CIFAR-100, 42 on ImageNet-R and 160 on CUB-200 in 10 tasks. Many of these are copies:
            each of its 600 candidates occurs 50 times, and the farthest come with all their copies.
            The loss is a mean over outliers.
        candidates: drawn for each batch.
        neighbours: k. The distance to the k-th nearest feature of the batch says how far a
        candidate
            is and whether a feature is on the border. (In the public code: of the whole task,
            scaled to length 1 as here.)
        feature_threshold, outlier_threshold, outlier_weight: see losses/outliers.py.
        prompt_rate_factor: learning rate of the prompt, as a multiple of the classifier's.
    """

    reference = Reference(
        "Huang et al. 2024, arXiv 2402.04129, and the authors' code",
        "one forward pass; outliers are chosen anew for each batch by its own features, 40 a "
        "batch, where the authors' code chooses them once an epoch by all of the task's, 40 a "
        "class (with repetitions), and deals them to the batches",
        published_parameters=0.26,
        published_gflops=(33.72, 33.72),
    )

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        g_length: Annotated[int, AtLeast(1)] = 5,
        e_length: Annotated[int, AtLeast(1)] = 20,
        g_blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        e_blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        outlier_share: Annotated[float, Share(with_1=False)] = 0.2,
        outlier_source: Literal["code", "paper"] = "code",
        outlier_noise: Annotated[float, NotNegative()] = 0.1,
        outliers: Annotated[int, AtLeast(1)] = 40,
        candidates: Annotated[int, AtLeast(1)] = 600,
        neighbours: Annotated[int, AtLeast(1)] = 50,
        feature_threshold: float = -15.0,
        outlier_threshold: float = -3.0,
        outlier_weight: Annotated[float, NotNegative()] = 0.1,
        prompt_rate_factor: Annotated[float, Positive()] = 1.0,
        align: bool = False,
        centroids: Annotated[int, Range(1, 1000)] = 1,
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

    def needs_whole_batch(self) -> BatchDependence | None:
        """The features of the batch decide which candidates are outliers.

        This holds even where trainer.epochs=1 leaves no phase for outliers; method.outlier_share=0
        is then the same run.
        """
        if self.outlier_share > 0:
            return BatchDependence(
                f"method.outlier_share={self.outlier_share:g}", "method.outlier_share=0"
            )
        return super().needs_whole_batch()

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        """Prompt and classifier, then the classifier with outliers; one schedule over both."""
        last = 0
        if self.outlier_share > 0:
            last = min(max(1, round(self.outlier_share * epochs)), epochs - 1)
        first = epochs - last
        phases = [Phase("train", first, 0, epochs)]
        return [*phases, Phase("outliers", last, first, epochs)] if last else phases

    def begin_phase(self, phase: Phase) -> None:
        self._with_outliers = phase.name == "outliers"

    def choose(self, query: Tensor) -> Choice:
        return Choice(
            [
                prefix
                for prompts in (self.general, self.expert)
                for prefix in prefixes(prompts.expand(-1, -1, query.shape[0], -1, -1))
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
        """Logits of outliers, which are chosen by the features of the whole batch."""
        return self.classify(self._make_outliers(collectives.gathered(features)))

    def _make_outliers(self, features: Tensor) -> Tensor:
        """features (B, C) -> (outliers, C)."""
        directions = F.normalize(features, dim=-1)
        if self.outlier_source == "paper":
            border = features[far_from(directions, directions, self.neighbours, self.outliers)]
            drawn = shifted(border, self.outlier_noise, self.candidates)
            # The paper measures all distances on the unit sphere.
            return drawn[
                far_from(F.normalize(drawn, dim=-1), directions, self.neighbours, self.outliers)
            ]
        drawn = shifted(torch.zeros_like(features[:1]), self.outlier_noise, self.candidates)
        return drawn[far_from(drawn, directions, self.neighbours, self.outliers)]
