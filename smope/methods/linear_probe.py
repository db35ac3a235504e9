"""A linear probe, task after task: logistic regression on frozen features, fitted to convergence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.losses.classification import task_cross_entropy
from smope.methods._shared.closed_form import features_of, joined
from smope.methods.base import Batches, Card, Method, Phase, TaskSpan

TOLERANCE = 1e-6  # largest gradient entry at which a fit has converged


class LinearProbe(Method):
    """Fits the classifier to each task's features, those of images shown once through the
    evaluation transform.

    What the field calls a linear probe (Radford et al. 2021, arXiv 2103.00020): multinomial
    logistic regression by L-BFGS on features computed once, with a penalty on the weights and no
    augmentation. A task's fit starts at the weights of the task before. `finetune` is something
    else: AdamW on augmented images for a number of epochs, each step with a forward pass.

    competing:  "task", the classes of the current task's images alone, as in the loss of every
                method here; "seen", all
                classes so far, as in a probe that knows nothing of tasks: with a fit to convergence
                the classes without images in the current task are then forgotten altogether.
    penalty:    of the mean loss, penalty · |W - W_before|² / 2: how far a task may take the
                weights. 0: none.
    iterations: most L-BFGS iterations a task.

    Either way nothing sets the rows of different tasks against each other, which is why means of
    features, that need no setting against each other, are far ahead of a probe.

    Of the images a task's features are kept while it is learned (n·C numbers in float64), and
    nothing afterwards.
    """

    card = Card(
        "sequential linear probing", "the classifier alone, fitted to features computed once"
    )

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        competing: Literal["task", "seen"] = "task",
        penalty: float = 1e-3,
        iterations: int = 200,
    ) -> None:
        super().__init__(backbone, num_classes, align=False)
        self.competing = competing
        self.penalty = penalty
        self.iterations = iterations

    def phases(self, task: TaskSpan, epochs: int, dense_epochs: int) -> list[Phase]:
        # all is learned in end_task: the loop's steps would compute the same features again and
        # again
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
