"""For methods with prefix prompts: a frozen pass gives a query, the query chooses prompts, and a
second pass uses them.

Shapes: B batch, S image side, C feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.backbones.wrapping import wrap
from smope.errors import UserError
from smope.losses.classification import task_cross_entropy
from smope.methods.base import BatchDependence, Method, Phase, TaskSpan
from smope.prompts.pool import AuthorsBug
from smope.prompts.prefix import Prefix, PrefixAttention, clear, prefixed


@dataclass(frozen=True)
class Choice:
    """The prompts chosen for a batch.

    Attributes:
        prefixes: one for each prompted block.
        losses: what choosing adds to the loss, by name.
    """

    prefixes: Sequence[Prefix]
    losses: dict[str, Tensor] = field(default_factory=dict)


class PrefixMethod(Method):
    """Base of methods with prefix prompts; a subclass chooses the prompts of an image in `choose`.

    The query is the CLS feature of a pass through the same backbone without prompts, so features
    cost two forward passes. A method that is not `queried` chooses without a query and costs one.

    Prompts have no weight decay. It would change those of earlier tasks, which have no gradient.

    Args:
        blocks: which blocks get prompts.
        prompt_rate_factor: learning rate of the prompts, as a multiple of the classifier's.
        key: the setting that an error about `blocks` names.
    """

    task: Tensor
    authors_bug: AuthorsBug = "none"

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        blocks: Sequence[int],
        *,
        align: bool = False,
        centroids: int = 1,
        prompt_rate_factor: float = 1.0,
        key: str = "method.blocks",
    ) -> None:
        super().__init__(backbone, num_classes, align=align, centroids=centroids)
        self.prompt_rate_factor = prompt_rate_factor
        self._wrappers = tuple(wrap(backbone.vit, blocks, PrefixAttention, key))
        # The current task, or the last one: a buffer, since a resumed run continues within it.
        self.register_buffer("task", torch.zeros((), dtype=torch.int64))

    @property
    def queried(self) -> bool:
        """Whether choosing needs the query now."""
        return True

    @property
    def width(self) -> int:
        """The width of a prompt: that of the backbone's keys and values, all heads together."""
        return self._wrappers[0].width

    def choose(self, query: Tensor) -> Choice:
        """The prompts for queries (B, C) in full precision; (B, 0) if the method is not
        `queried`.
        """
        raise TypeError(f"{type(self).__name__} does not define choose(query) -> Choice")

    def query(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) -> CLS features (B, C) without prompts and without gradient."""
        return self.frozen_features(images)

    def _bare_pass(self, images: Tensor) -> Tensor:
        clear(self._wrappers)
        return super()._bare_pass(images)

    def reads_frozen_features(self, phase: Phase) -> bool:
        return self.queried

    def features(self, images: Tensor) -> Tensor:
        return self.prompted(images, self._choice(images))

    def prompted(self, images: Tensor, choice: Choice) -> Tensor:
        """Features with the chosen prompts.

        Args:
            images: (B, 3, S, S) in [0, 1].
            choice: the prompts.

        Returns:
            Features (B, C).
        """
        with prefixed(self._wrappers, choice.prefixes, keep=self.backbone.recompute):
            return self.backbone(images)

    def _choice(self, images: Tensor) -> Choice:
        query = self.query(images) if self.queried else images.new_empty(images.shape[0], 0)
        # In half precision, rounded similarities may choose another prompt.
        with torch.autocast(images.device.type, enabled=False):
            return self.choose(query.to(self.classifier.weight.dtype))

    def needs_one_process(self) -> BatchDependence | None:
        if self.authors_bug == "none":
            return None
        return BatchDependence(f"method.authors_bug={self.authors_bug}", "method.authors_bug=none")

    def begin_task(self, task: TaskSpan) -> None:
        self.task.fill_(task.index)

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        choice = self._choice(images)
        logits = self.classify(self.prompted(images, choice))
        return {"cross_entropy": task_cross_entropy(logits, labels, task.classes), **choice.losses}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        rate = self.prompt_rate_factor * learning_rate
        prompts = {"params": list(self.prompt_parameters()), "lr": rate, "weight_decay": 0.0}
        return [prompts, *super().parameter_groups(learning_rate)]

    def prompt_parameters(self) -> Iterable[nn.Parameter]:
        """Every parameter that is neither the backbone's nor the classifier's."""
        others = {
            id(parameter)
            for module in (self.backbone, self.classifier)
            for parameter in module.parameters()
        }
        return [parameter for parameter in self.parameters() if id(parameter) not in others]


def check_tasks(method: Method, tasks: Sequence[TaskSpan], prepared: int) -> None:
    """Check that a method with prompts for each task has enough of them.

    Args:
        method: named in the error.
        tasks: of the stream.
        prepared: tasks that the method has prompts for.

    Raises:
        UserError: the stream has more tasks.
    """
    if len(tasks) > prepared:
        raise UserError(
            f"{type(method).__name__} was made for {prepared} tasks (total_tasks), and the stream "
            f"has {len(tasks)}; make it for as many"
        )
