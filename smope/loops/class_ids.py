"""The user's class ids, and the labels of a method, which are numbered as classes first appear.

Letters: B batch, N all classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from smope.errors import UserError
from smope.methods.base import TaskSpan


class ClassIds:
    """The class ids in 0..N-1 that have appeared so far.

    Args:
        num_classes: N.

    Attributes:
        of_labels: the class id of each label.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.of_labels: list[int] = []
        self._label_of: dict[int, int] = {}
        self._labels = torch.full((num_classes,), -1)

    def checked(self, classes: Iterable[int] | Tensor) -> list[int]:
        """The ids of a task, ascending, each once. UserError where one is not in 0..N-1."""
        values: Any = classes.flatten().tolist() if isinstance(classes, Tensor) else classes
        try:
            ids = sorted({index(value) for value in values})
        except TypeError as error:
            raise UserError(
                f"begin_task: classes must be whole numbers, one for each class, got {values}; "
                f"number your classes from 0, and write for example begin_task([0, 1])"
            ) from error
        if not ids:
            raise UserError("begin_task: got no class; name the ids of the task's classes")
        outside = [value for value in ids if not 0 <= value < self.num_classes]
        if outside:
            raise UserError(
                f"begin_task: class ids must be in 0..{self.num_classes - 1}, got {outside[0]}; "
                f"number your classes from 0, or make the method with a larger num_classes"
            )
        return ids

    def span(self, number: int, ids: Sequence[int]) -> TaskSpan:
        """The task of these ids, by its labels; ids that are new are not added yet.

        Args:
            number: of the task, from 0.
            ids: as checked() gives them.
        """
        start = len(self.of_labels)
        new = [class_id for class_id in ids if class_id not in self._label_of]
        label_of = self._label_of | {class_id: start + i for i, class_id in enumerate(new)}
        labels = tuple(sorted(label_of[class_id] for class_id in ids))
        return TaskSpan(number, start, start + len(new), labels)

    def add(self, ids: Sequence[int]) -> None:
        """Number those of these ids that are new."""
        for class_id in ids:
            if class_id not in self._label_of:
                self._label_of[class_id] = len(self.of_labels)
                self._labels[class_id] = len(self.of_labels)
                self.of_labels.append(class_id)

    def labels(self, class_ids: Tensor, span: TaskSpan) -> Tensor:
        """The labels of class ids.

        On an accelerator, where a check would have every step wait, ids are not checked here; the
        cross-entropy looks at the first batch of a task.

        Args:
            class_ids: (B,), on any device.
            span: its classes are allowed.

        Returns:
            (B,), on the device of the ids.

        Raises:
            UserError: an id is not of these classes, or is no whole number.
        """
        if class_ids.ndim != 1 or class_ids.is_floating_point() or class_ids.is_complex():
            raise UserError(
                f"labels must be class ids (B,), whole numbers, got {tuple(class_ids.shape)} of "
                f"{class_ids.dtype}"
            )
        if class_ids.device.type == "cpu":
            self._check(set(class_ids.tolist()), span)
        return self._labels.to(class_ids.device, non_blocking=True)[class_ids.long()]

    def _check(self, class_ids: set[int], span: TaskSpan) -> None:
        allowed = {self.of_labels[label] for label in span.classes}
        others = sorted(class_ids - allowed)
        if not others:
            return
        if others[0] in self._label_of:
            way_out = (
                "for batches that hold images of earlier tasks, as from a replay buffer, write "
                "loss(images, labels, competing='seen')"
            )
        else:
            way_out = "name all classes of a task in begin_task"
        raise UserError(f"labels: class {others[0]} is not of the current task; {way_out}")

    def columns(self, logits: Tensor) -> Tensor:
        """A column for each class id.

        Args:
            logits: (B, N), a column for each label.

        Returns:
            (B, N); minus infinity for classes that have not appeared.
        """
        seen = len(self.of_labels)
        columns = logits.new_full((len(logits), self.num_classes), -torch.inf)
        columns[:, self.of_labels] = logits[:, :seen]
        return columns
