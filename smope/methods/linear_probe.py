"""A linear probe, task after task: logistic regression on frozen features, fitted to
convergence.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.declare.ranges import AtLeast, NotNegative
from smope.losses.classification import task_cross_entropy
from smope.methods._shared.closed_form import features_of, joined
from smope.methods.base import Batches, Method, Phase, Reference, TaskSpan

TOLERANCE = 1e-6  # largest gradient entry at which a fit has converged


class LinearProbe(Method):
    """Fits the classifier to the features of each task, computed once through the evaluation
    transform.

    This is the linear probe of Radford et al. 2021 (arXiv 2103.00020): multinomial logistic
    regression by L-BFGS on features computed once, with a penalty on the weights and no
    augmentation. The fit of a task starts at the weights of the task before. (`finetune` takes
    AdamW steps on augmented images, each with a forward pass.)

    Neither choice of `competing` compares the classes of different tasks. So a probe is far behind
    class means (`ncm`), which need no such comparison.

    A task's features (n·C numbers in float64) are kept while it is learned, and nothing afterwards.

    Args:
        competing: "task": only the classes of the current task compete, as in the loss of every
            method here. "seen": all classes so far, as in a probe that knows nothing of tasks; a
            fit to convergence then forgets the classes without images in the current task.
        penalty: of penalty · |W - W_before|² / 2, added to the mean loss: how far a task may move
            the weights. 0: no limit.
        iterations: most L-BFGS iterations of a task.
    """

    reference = Reference(
        "sequential linear probing", "the classifier alone, fitted to features computed once"
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        competing: Literal["task", "seen"] = "task",
        penalty: Annotated[float, NotNegative()] = 1e-3,
        iterations: Annotated[int, AtLeast(1)] = 200,
    ) -> None:
        super().__init__(backbone, num_classes, align=False)
        self.competing = competing
        self.penalty = penalty
        self.iterations = iterations

    def phases(self, task: TaskSpan, epochs: int) -> list[Phase]:
        # All is learned in end_task. Training steps would compute the same features every epoch.
        return []

    def _classes(self, task: TaskSpan) -> range | tuple[int, ...]:
        return range(task.stop) if self.competing == "seen" else task.classes

    def end_task(self, task: TaskSpan, batches: Batches) -> None:
        # In float64 on the CPU: not every accelerator has it, and a matrix of n·C numbers is small.
        features, labels = joined(features_of(self, batches, torch.device("cpu")))
        fitted = nn.Linear(features.shape[1], self.num_classes).double()
        fitted.load_state_dict(
            {key: value.cpu() for key, value in self.classifier.state_dict().items()}
        )
        with torch.enable_grad():
            self._fit(fitted, features, labels, task)
        self.classifier.load_state_dict(fitted.state_dict())

    def _fit(self, classifier: nn.Linear, features: Tensor, labels: Tensor, task: TaskSpan) -> None:
        before = classifier.weight.detach().clone()
        optimizer = torch.optim.LBFGS(
            classifier.parameters(),
            max_iter=self.iterations,
            tolerance_grad=TOLERANCE,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = task_cross_entropy(classifier(features), labels, self._classes(task))
            value = value + self.penalty / 2 * (classifier.weight - before).square().sum()
            value.backward()
            return value

        optimizer.step(loss)
