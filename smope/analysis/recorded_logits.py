"""The logits of an evaluation, of all classes or the largest alone: what the analysis asks of them.

Shapes: M images, C classes seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property

import numpy
from numpy.typing import NDArray


class RecordedLogits(ABC):
    """What both kinds can say.

    num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    @property
    @abstractmethod
    def largest(self) -> NDArray[numpy.float32]:
        """(M,) the largest logit."""

    @property
    @abstractmethod
    def confidence(self) -> NDArray[numpy.float64]:
        """(M,) the largest probability."""

    @abstractmethod
    def brier(self, labels: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        """Sum over classes of (probability - [class is the label])².

        Args:
            labels: (M,); a label that is not seen yet counts as none of the classes.

        Returns:
            (M,).
        """

    @abstractmethod
    def margin(self, new: NDArray[numpy.bool_]) -> NDArray[numpy.float32]:
        """The largest logit of a new class minus the largest of an old one.

        Args:
            new: (C,) which classes the newest task has brought; some, and not all.

        Returns:
            (M,).
        """

    @abstractmethod
    def best_in_task(
        self, classes_of_tasks: NDArray[numpy.bool_], tasks: NDArray[numpy.int64]
    ) -> NDArray[numpy.int64]:
        """The class with the largest logit among those of the image's own task.

        Args:
            classes_of_tasks: (T, at least C) which classes each task has.
            tasks: (M,) of the images.

        Returns:
            (M,); without a meaning for images of later tasks.
        """


class AllLogits(RecordedLogits):
    """A logit for each image and class.

    values: (M, C).
    """

    def __init__(self, values: NDArray[numpy.float32]) -> None:
        super().__init__(values.shape[1])
        self.values = values

    @cached_property
    def probabilities(self) -> NDArray[numpy.float64]:
        """(M, C) softmax."""
        logits = self.values.astype(numpy.float64)
        powers = numpy.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    @property
    def largest(self) -> NDArray[numpy.float32]:
        return self.values.max(-1)

    @property
    def confidence(self) -> NDArray[numpy.float64]:
        return self.probabilities.max(-1)

    def brier(self, labels: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        target = numpy.arange(self.num_classes) == labels[:, None]
        return ((self.probabilities - target) ** 2).sum(-1)

    def margin(self, new: NDArray[numpy.bool_]) -> NDArray[numpy.float32]:
        return self.values[:, new].max(-1) - self.values[:, ~new].max(-1)

    def best_in_task(
        self, classes_of_tasks: NDArray[numpy.bool_], tasks: NDArray[numpy.int64]
    ) -> NDArray[numpy.int64]:
        allowed = classes_of_tasks[tasks][:, : self.num_classes]
        return numpy.where(allowed, self.values, -numpy.inf).argmax(-1)


class TopLogits(RecordedLogits):
    """A few numbers for each image.

    arrays: by the names of training/recording.py.
    """

    def __init__(self, arrays: Mapping[str, NDArray], num_classes: int) -> None:
        super().__init__(num_classes)
        self.arrays = arrays

    @property
    def largest(self) -> NDArray[numpy.float32]:
        return self.arrays["top"]

    @property
    def confidence(self) -> NDArray[numpy.float64]:
        return numpy.exp(-self.arrays["log_sum"].astype(numpy.float64))

    def brier(self, labels: NDArray[numpy.int64]) -> NDArray[numpy.float64]:
        logit = self.arrays["label_logit"].astype(numpy.float64)
        probability = numpy.exp(logit - self.arrays["log_sum"])
        known = labels < self.num_classes
        return self.arrays["squared_probabilities"] + numpy.where(known, 1 - 2 * probability, 0)

    def margin(self, new: NDArray[numpy.bool_]) -> NDArray[numpy.float32]:
        best_new, best_old = self.arrays["best_new"], self.arrays["best_old"]
        return best_new.astype(numpy.float32) - best_old

    def best_in_task(
        self, classes_of_tasks: NDArray[numpy.bool_], tasks: NDArray[numpy.int64]
    ) -> NDArray[numpy.int64]:
        return self.arrays["predicted_in_task"].astype(numpy.int64)
