"""MiN: a small noise module for each task, mixed by weights, and ridge regression that is fitted
again with every task (Jiang et al. 2025, NeurIPS, arXiv 2509.16738).

A task is learned like this:

    prototype     p_t, the mean feature of its images by the frozen backbone
    mixture       ω of each block starts as softmax over i <= t of cos(p_t, p_i) / temperature
    preview       ridge weights W of all classes so far, by the network as it is
    training      module t, ω and a linear layer W_aux learn with cross-entropy of
                  z·W_aux + stop_gradient(z·W), where z are the random features of ridge
    classifier    ridge_head.RidgeHead.fit, by the network as it is now

From the paper. Its public code (ASCIIJK/MiN) does something else: it has one module that starts
again from 0 in every task, with weights that are constant, noise of one fixed value, and in the
first task a trained layer of C² numbers beside each block and trained norms. Choices made here:

- Noise is drawn once a training step and block, N(0, I) for each token and image, but the same for
  all of them. So parts of a batch and several processes learn the same. In evaluation it is its
  mean, 0. (The paper does not say; the code always adds both layers.)
- Images are in the sums of ridge once, with the features that their task's training ended with. In
  the code they are there before it as well: near duplicates, with which a penalty cannot be chosen.
- Modules learn by AdamW at a hundredth of the rate of W_aux. The paper has SGD at one rate, whose
  steps in modules, which start at 0, are small. With AdamW at one rate features drift, and sums of
  earlier tasks no longer fit: on digits, 35 % after three tasks of two epochs each.
- The penalty is chosen as in method=ridge. The paper has 100 to 500, depending on the data set, for
  random features of another scale.

Letters: B batch, C features, D width of a module, L blocks, M random features, T tasks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.backbones.wrapping import BlockWrapper, without_wrappers, wrap
from smope.declare.ranges import AtLeast, BlockNumbers, OrderedPair, Positive
from smope.distributed import collectives
from smope.losses.classification import check_labels
from smope.methods._shared.closed_form import features_of
from smope.methods._shared.prefix_method import check_tasks
from smope.methods._shared.ridge_head import PenaltyRule, RidgeHead
from smope.methods.base import Batches, Method, Phase, Recollection, Reference, TaskSpan


class NoisyBlock(BlockWrapper):
    """A block whose output r becomes r + r·down·inner·up; unchanged where nothing is set."""

    matrices: tuple[Tensor, Tensor, Tensor] | None = None

    def after(self, x: Tensor) -> Tensor:
        if self.matrices is None:
            return x
        down, inner, up = self.matrices
        return x + x @ down @ inner @ up


class MiN(Method):
    """Noise modules for each task, of which every image uses the mixture.

    A block's output r becomes r + (Σ_i ω_i ε_i)·up with ε_i = ε ⊙ (h·S_i) + h·M_i, h = r·down and ε
    from N(0, I). `down` (C, D) and `up` (D, C) are random and stay. All is linear in h, so that the
    matrices are mixed and not what they give: an image costs the same after any number of tasks.

    Parameters: means and scales (L, T, D, D), M_i and S_i, which start at 0; mixture (L, T), ω. In
    task t its own module and ω learn.

    Args:
        noise_width: D.
        blocks: where modules are; None: behind each block.
        temperature: of the softmax over tasks with which ω starts.
        noise_rate_factor: learning rate of modules and ω, as a multiple of that of W_aux.
        width, exponents, penalty_rule: see ridge_head.RidgeHead.
    """

    reference = Reference(
        "Jiang et al. 2025, arXiv 2509.16738 (MiN), from the paper",
        "parameters are the modules of all tasks, 2·D² a block and task, and the layer W_aux on "
        "random features, which only training has; its public code trains other parts",
    )
    learning_only = ("classifier", "scales", "prototypes", "task")
    sums_stay = True
    down: Tensor
    up: Tensor
    prototypes: Tensor
    task: Tensor

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        noise_width: Annotated[int, AtLeast(1)] = 192,
        blocks: Annotated[list[int] | None, BlockNumbers()] = None,
        temperature: Annotated[float, Positive()] = 2.0,
        noise_rate_factor: Annotated[float, Positive()] = 0.01,
        width: Annotated[int, AtLeast(1)] = 2000,
        exponents: Annotated[Sequence[int], OrderedPair(-30, 30)] = (-8, 8),
        penalty_rule: PenaltyRule = "gcv",
    ) -> None:
        super().__init__(backbone, num_classes, align=False)
        features = backbone.embed_dim
        blocks = [*range(len(backbone.vit.blocks))] if blocks is None else blocks
        self._wrappers = wrap(backbone.vit, blocks, NoisyBlock, part="block")
        self.temperature = temperature
        self.noise_rate_factor = noise_rate_factor
        shape = (len(blocks), total_tasks)
        self.means = nn.Parameter(torch.zeros(*shape, noise_width, noise_width))
        self.scales = nn.Parameter(torch.zeros_like(self.means))
        self.mixture = nn.Parameter(torch.zeros(shape))
        # Bounds as in the public code.
        down = torch.empty(len(blocks), features, noise_width).uniform_(-1, 1) / noise_width**0.5
        up = torch.empty(len(blocks), noise_width, features).uniform_(-1, 1) / features**0.5
        self.register_buffer("down", down)
        self.register_buffer("up", up)
        self.register_buffer("prototypes", torch.zeros(total_tasks, features))
        self.register_buffer("task", torch.zeros((), dtype=torch.int64))
        self.ridge = RidgeHead(features, num_classes, width, exponents, penalty_rule)
        self.classifier = nn.Linear(width, num_classes, bias=False)
        self._drawn: Tensor | None = None  # the noise of the step under way, (L, D)

    def check_stream(self, tasks: Sequence[TaskSpan]) -> None:
        check_tasks(self, tasks, self.mixture.shape[1])

    def features(self, images: Tensor) -> Tensor:
        with self._mixed():
            return self.backbone(images)

    def classify(self, features: Tensor) -> Tensor:
        return self.ridge(features)

    def _bare_pass(self, images: Tensor) -> Tensor:
        with without_wrappers(self.backbone.vit):
            return super()._bare_pass(images)

    @contextmanager
    def _mixed(self) -> Iterator[None]:
        """Every block has its mixture within the context, and until the next one where the backward
        pass runs blocks again.
        """
        matrices = zip(self.down, self.inner_matrices(), self.up, strict=True)
        for wrapper, (down, inner, up) in zip(self._wrappers, matrices, strict=True):
            wrapper.matrices = (down, inner, up)
        try:
            yield
        finally:
            if not (self.backbone.recompute and torch.is_grad_enabled()):
                for wrapper in self._wrappers:
                    wrapper.matrices = None

    def inner_matrices(self) -> Tensor:
        """Σ_i ω_i (M_i + S_i·diag(ε)) of each block, (L, D, D); without noise in evaluation."""
        mixture = self.mixture[..., None, None]
        if not self.training:
            return (mixture * self.means).sum(1)
        noise = self._step_noise()[:, None, None, :]
        modules = self._own_learns(self.means) + self._own_learns(self.scales) * noise
        return (mixture * modules).sum(1)

    def _own_learns(self, modules: Tensor) -> Tensor:
        """The same numbers, of which only those of the present task have a gradient."""
        own = torch.arange(modules.shape[1], device=modules.device) == self.task
        return torch.where(own[:, None, None], modules, modules.detach())

    def _step_noise(self) -> Tensor:
        """The noise of this step, (L, D), by torch's global generator, which checkpoints have."""
        if self._drawn is None:
            self._drawn = torch.randn(self.down.shape[0], self.down.shape[2])
        return self._drawn.to(self.down)

    def begin_phase(self, phase: Phase) -> None:
        self._drawn = None  # of a step that was only counted

    def end_step(self) -> None:
        self._drawn = None
        for wrapper in self._wrappers:
            wrapper.matrices = None  # a backward pass that ran blocks again is over

    @torch.no_grad()
    def begin_task(self, task: TaskSpan) -> None:
        self.task.fill_(task.index)
        self.classifier.weight.zero_()

    @torch.no_grad()
    def prepare_task(self, task: TaskSpan, batches: Batches) -> None:
        """The prototype, the start of ω, and the preview, from one look at the images."""
        frozen, device = list[Tensor](), self.ridge.sums.penalty.device

        def noting(kind: Any) -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in batches(kind):
                rows = collectives.gathered(self._bare_pass(images)).to(device).double()
                frozen.append(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
                yield images, labels

        self.ridge.preview(features_of(self, noting, device))
        total = torch.stack(frozen).sum(0)
        self.prototypes[task.index] = total[:-1] / total[-1]
        self.mixture[:, : task.index + 1] = first_mixture(
            self.prototypes[: task.index + 1], self.temperature
        )

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        return [Phase("noise", epochs)]

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        hidden = self.ridge.hidden(self.features(images))
        known = F.linear(hidden.detach(), self.ridge.weight)
        # The scale that random features have in the public code.
        learned = self.classifier(hidden / math.sqrt(3 * hidden.shape[-1]))
        check_labels(labels, task.classes)
        logits = (known + learned)[:, : task.stop]
        return {"cross_entropy": F.cross_entropy(logits, labels)}

    def own_passes(self, task: TaskSpan) -> int:
        """Two before training, one of them through the bare backbone, and one after it."""
        return 3

    @torch.no_grad()
    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        self.ridge.fit(features_of(self, batches, self.ridge.sums.penalty.device))

    def recollect(self, count: int) -> Recollection | None:
        return self.ridge.recollect()

    def prompt_parameters(self) -> Iterable[nn.Parameter]:
        return [self.means, self.scales, self.mixture]

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        rate = self.noise_rate_factor * learning_rate
        modules = {"params": list(self.prompt_parameters()), "lr": rate, "weight_decay": 0.0}
        return [modules, *super().parameter_groups(learning_rate)]


def first_mixture(prototypes: Tensor, temperature: float) -> Tensor:
    """The weights with which a task starts.

    Args:
        prototypes: of all tasks so far, (t, C), its own last.
        temperature: of the softmax.

    Returns:
        (t,), positive, of sum 1.
    """
    cosines = F.cosine_similarity(prototypes, prototypes[-1:], dim=-1)
    return (cosines / temperature).softmax(0)
