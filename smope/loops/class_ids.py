"""The user's class ids, and the labels of a method, which are numbered as classes first appear.

Letters: B batch, N all classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from smope.errors import UserError
from smope.methods.base import TaskSpan
from smope.training.device import fetch

NONE_WRONG = torch.iinfo(torch.int64).max


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
        self._late: Callable[[], float] | None = None
        self._late_key: tuple[tuple[int, ...], torch.device] | None = None

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

    def labels(self, class_ids: Tensor, span: TaskSpan, *, at_end: bool = False) -> Tensor:
        """The labels of class ids.

        On an accelerator no step waits for the check of its ids but the first one with these
        classes. Wrong ids of a later one get some label of the task, and are refused with the next
        batch, or by check_late().

        Args:
            class_ids: (B,), whole numbers, on any device.
            span: its classes are allowed.
            at_end: whether these are images that end a task: each batch is checked at once, and
                none of another task belongs there.

        Returns:
            (B,), on the device of the ids.

        Raises:
            UserError: an id is not of these classes.
        """
        self.check_late()
        ids = class_ids.long()
        if at_end or not _is_late(ids.device):
            self._check(ids, span, at_end)
            return self._labels.to(ids.device)[ids]
        key = (span.classes, ids.device)
        if key != self._late_key:
            self._check(ids, span, at_end)
            allowed = torch.full((self.num_classes,), -1)
            for label in span.classes:
                allowed[self.of_labels[label]] = label
            self._late_key, self._allowed = key, allowed.to(ids.device)
        inside = ids.clamp(0, self.num_classes - 1)
        labels = self._allowed[inside]
        wrong = (labels < 0) | (inside != ids)
        self._late = fetch(torch.where(wrong, ids, NONE_WRONG).amin())
        return torch.where(wrong, span.classes[0], labels)

    def check_late(self) -> None:
        """UserError if a batch before held a wrong id that was not known then."""
        if self._late is None:
            return
        number, self._late = self._late, None
        if (class_id := int(number())) != NONE_WRONG:
            raise self._wrong(class_id, " (in an earlier batch, which was trained on)")

    def _check(self, ids: Tensor, span: TaskSpan, at_end: bool) -> None:
        allowed = {self.of_labels[label] for label in span.classes}
        others = sorted(set(ids.tolist()) - allowed)
        if others:
            raise self._wrong(others[0], at_end=at_end)

    def _wrong(self, class_id: int, where: str = "", *, at_end: bool = False) -> UserError:
        if not 0 <= class_id < self.num_classes:
            return UserError(
                f"labels: class {class_id}{where} is not in 0..{self.num_classes - 1}; number your "
                f"classes from 0, or make the method with a larger num_classes"
            )
        if class_id not in self._label_of:
            way_out = "name all classes of a task in begin_task"
        elif at_end:
            way_out = "give the images of this task alone"
        else:
            way_out = (
                "for batches that hold images of earlier tasks, as from a replay buffer, write "
                "loss(images, labels, competing='seen')"
            )
        return UserError(f"labels: class {class_id}{where} is not of the current task; {way_out}")

    def __getstate__(self) -> dict[str, Any]:
        """Without what is on its way from a device."""
        return {**self.__dict__, "_late": None}

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


def _is_late(device: torch.device) -> bool:
    """Whether numbers on a device are known only after waiting for it."""
    return device.type != "cpu"
