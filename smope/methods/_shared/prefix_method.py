"""What the methods with prefix prompts share: a frozen pass for the query, a choice of prompts, a
pass with them.

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
from smope.methods.base import Coupling, Method, TaskSpan
from smope.prompts.pool import AuthorsBug
from smope.prompts.prefix import Prefix, PrefixAttention, clear, prefixed


@dataclass(frozen=True)
class Choice:
    """The prompts of each image, one prefix a prompted block, and what choosing adds to the loss,
    by name.
    """

    prefixes: Sequence[Prefix]
    losses: dict[str, Tensor] = field(default_factory=dict)


class PrefixMethod(Method):
    """Base of these methods; a subclass says in `choose` which prompts an image gets for its query.

    The query is the CLS feature of one pass through the same backbone without prompts, so that
    features cost two forward passes. Where a method is not `queried`, it chooses without one and
    costs one.

    Prompts have no weight decay: it would move those of earlier tasks, which have no gradient any
    more.
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
        # The task at hand, or the last one: a resumed run goes on within it.
        self.register_buffer("task", torch.zeros((), dtype=torch.int64))

    @property
    def queried(self) -> bool:
        """Whether choosing takes the query, at present."""
        return True

    @property
    def width(self) -> int:
        """The width of a prompt: that of the backbone's keys and values, heads side by side."""
        return self._wrappers[0].width

    def choose(self, query: Tensor) -> Choice:
        """query (B, C), in full precision; (B, 0) where the method is not `queried`."""
        raise TypeError(f"{type(self).__name__} does not define choose(query) -> Choice")

    def query(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) -> CLS features (B, C) of the frozen backbone without prompts,
        without gradient.
        """
        clear(self._wrappers)
        with torch.no_grad():
            return self.backbone(images)

    def features(self, images: Tensor) -> Tensor:
        return self.prompted(images, self._choice(images))

    def prompted(self, images: Tensor, choice: Choice) -> Tensor:
        """images (B, 3, S, S) -> features (B, C) with the chosen prompts."""
        with prefixed(self._wrappers, choice.prefixes, keep=self.backbone.recompute):
            return self.backbone(images)

    def _choice(self, images: Tensor) -> Choice:
        query = self.query(images) if self.queried else images.new_empty(len(images), 0)
        # A half-precision similarity can choose another prompt.
        with torch.autocast(images.device.type, enabled=False):
            return self.choose(query.to(self.classifier.weight.dtype))

    def needs_one_process(self) -> Coupling | None:
        if self.authors_bug == "none":
            return None
        return Coupling(f"method.authors_bug={self.authors_bug}", "method.authors_bug=none")

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
    """UserError where a method with prompts of their own for `prepared` tasks meets a stream of
    more.
    """
    if len(tasks) > prepared:
        raise UserError(
            f"{type(method).__name__} was made for {prepared} tasks (total_tasks), and the stream "
            f"has {len(tasks)}; "
            "make it for as many"
        )
