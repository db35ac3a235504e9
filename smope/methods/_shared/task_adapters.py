"""For methods with an adapter for each task in each block, through which an image may pass several
times, each time with another one.

Shapes: B batch, S image side, C feature width, T tasks, n passes, K classes, M adapters of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from smope.backbones.vit import Backbone
from smope.experts.shared import add_adapters
from smope.methods._shared.cosine_classifier import CosineClassifier
from smope.methods._shared.prefix_method import check_tasks
from smope.methods.base import Method, TaskSpan


class TaskAdapters(Method):
    """Trains the adapter of a task, one in each block, and never changes it afterwards.

    Parameters: the M = front + T adapters of a block are one tensor (M, r, C); see Adapters. They
    have no weight decay, which would change those of earlier tasks too. A subclass says in `passes`
    which of them an image passes; its features are those of all passes, one after the other.

    Args:
        rank: r.
        blocks: where adapters are; None: in every block.
        adapter_scale: what they are multiplied by.
        scale: of cosines in the classifier, the largest logit.
        rate_factor: learning rate of the adapters, as a multiple of the classifier's.

    Attributes:
        front: adapters in front of those of the tasks. (In front, because a model that learns more
            tasks later keeps the first rows of its tensors.)
    """

    front: ClassVar[int] = 0
    learned: Tensor

    def __init__(  # noqa: PLR0913 (those of its subclasses' configurations)
        self,
        backbone: Backbone,
        num_classes: int,
        total_tasks: int,
        *,
        rank: int,
        blocks: Sequence[int] | None,
        adapter_scale: float,
        scale: float,
        rate_factor: float,
        align: bool,
    ) -> None:
        numbers = range(len(backbone.vit.blocks)) if blocks is None else blocks
        number = self.front + total_tasks
        wrappers = add_adapters(backbone.vit, numbers, number, rank, adapter_scale)
        super().__init__(backbone, num_classes, align=align)
        self.classifier = CosineClassifier(backbone.embed_dim, num_classes, scale)
        self.total_tasks = total_tasks
        self.rate_factor = rate_factor
        self._wrappers = tuple(wrappers)
        # Registered beside the backbone, whose part of the state is left out.
        self.adapters = nn.ModuleList(wrapper.modules_beside for wrapper in wrappers)
        # How many tasks began, and the same as a plain number: reading a buffer waits for a GPU,
        # and a graph that is exported cannot.
        self.register_buffer("learned", torch.zeros((), dtype=torch.int64))
        self._learned = 0
        self.register_load_state_dict_post_hook(_count_learned)

    @property
    def tasks_learned(self) -> int:
        """Tasks with an adapter of their own, the current one included; at least 1."""
        return max(1, self._learned)

    def _begun(self, tasks: int) -> None:
        self.learned.fill_(tasks)
        self._learned = tasks

    def passes(self) -> Sequence[int]:
        """The numbers of the adapters, in 0..M-1, with which an image passes the network."""
        return [self.front + task for task in range(self.tasks_learned)]

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [0, 1] -> features (B, n·C), those of all passes side by side."""
        return torch.cat([self.features_with(images, number) for number in self.passes()], -1)

    def features_with(self, images: Tensor, number: int) -> Tensor:
        """Features of one pass.

        Args:
            images: (B, 3, S, S) in [0, 1].
            number: of the adapter in each block, in 0..M-1.

        Returns:
            Features (B, C).
        """
        for wrapper in self._wrappers:
            wrapper.used = slice(number, number + 1)
        return self.backbone(images)

    def features_of_task(self, images: Tensor, task: TaskSpan) -> Tensor:
        """Features with a task's own adapter.

        Args:
            images: (B, 3, S, S) in [0, 1].
            task: the task.

        Returns:
            Features (B, C).
        """
        return self.features_with(images, self.front + task.index)

    def by_pass(self, features: Tensor) -> Tensor:
        """features (B, n·C) -> (B, n, C)."""
        return features.unflatten(-1, (-1, self.backbone.embed_dim))

    def check_stream(self, tasks: Sequence[TaskSpan]) -> None:
        check_tasks(self, tasks, self.total_tasks)

    def begin_task(self, task: TaskSpan) -> None:
        self._begun(task.index + 1)

    def assume_learned(self, tasks: int | None = None) -> None:
        self._begun(self.total_tasks if tasks is None else tasks)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        rate = self.rate_factor * learning_rate
        adapters = {"params": list(self.adapters.parameters()), "lr": rate, "weight_decay": 0.0}
        return [adapters, *super().parameter_groups(learning_rate)]

    def prompt_parameters(self) -> Iterable[nn.Parameter]:
        return self.adapters.parameters()


def _count_learned(method: TaskAdapters, _: Any) -> None:
    method._learned = 0 if method.learned.is_meta else int(method.learned)
