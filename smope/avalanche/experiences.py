"""What a strategy reads of Avalanche's experiences, and what it refuses.

Letters: B batch, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from avalanche.benchmarks import OnlineCLExperience
from avalanche.benchmarks.utils.data_loader import collate_from_data_or_kwargs
from torch import Tensor
from torch.utils.data import DataLoader

from smope.errors import UserError
from smope.seeding import stable_seed
from smope.streams.task_images import TaskImages
from smope.training.loading import choose_workers, load, ordered_batches, shuffled_batches
from smope.training.settings import TrainerSettings


def classes_of(experience: Any) -> list[int]:
    """The class ids of an experience's images, ascending."""
    classes = getattr(experience, "classes_in_this_experience", None)
    if classes is None:
        classes = {int(target) for target in experience.dataset.targets}
    return sorted(map(int, classes))


def check_classes(experience: Any, num_classes: int) -> None:
    """UserError where a class id of an experience has no logit of `num_classes`."""
    largest = classes_of(experience)[-1]
    if largest >= num_classes:
        raise UserError(
            f"experience {experience.current_experience}: has class id {largest}, and the method "
            f"was made with num_classes={num_classes}; make it with num_classes={largest + 1} or "
            f"more"
        )


class TaskLabels:
    """Task labels of the experiences so far. They are not used: a test image comes without."""

    def __init__(self) -> None:
        self._task_of: dict[int, set[int]] = {}

    def check(self, experience: Any) -> None:
        """Note an experience.

        Raises:
            UserError: it is part of an online stream, or its classes have come before under another
                task label, so that they may be others.
        """
        if isinstance(experience, OnlineCLExperience):
            raise UserError(
                "experience: is a part of an online stream, and a method learns a task as a whole; "
                "train on the experiences that it was made of, with train_epochs=1"
            )
        task_labels = set(getattr(experience, "task_labels", None) or [0])
        for class_id in classes_of(experience):
            earlier = self._task_of.setdefault(class_id, task_labels)
            if earlier != task_labels:
                raise UserError(
                    f"experience {experience.current_experience}: class id {class_id} comes again "
                    f"with task label {min(task_labels)} instead of {min(earlier)}, and methods "
                    f"here have no head for each task; make the benchmark with "
                    f"return_task_id=False if it is the same class, and without "
                    f"class_ids_from_zero_in_each_exp if it is another"
                )


class Pass:
    """Batches that a function makes anew for each pass."""

    def __init__(self, make: Callable[[], Iterator[Any]], length: int) -> None:
        self._make = make
        self._length = length

    def __iter__(self) -> Iterator[Any]:
        return self._make()

    def __len__(self) -> int:
        return self._length


class OwnImages:
    """Batches of a stream of ours: those of `smope train`, to the bit, where Avalanche would draw
    augmentation from torch's global generator.

    Args:
        settings: batch sizes and workers.
        seed: of the run.
        device: where batches are put.
        dtype: of the pixels.

    Attributes:
        epoch: passes over training images in the current task.
    """

    def __init__(
        self, settings: TrainerSettings, seed: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._settings = settings
        self._seed = seed
        self._device = device
        self._dtype = dtype
        self.epoch = 0

    def shuffled(self, images: TaskImages, task_index: int) -> Pass:
        """Training epochs: shuffled, augmented, an incomplete last batch dropped.

        Args:
            images: of the task.
            task_index: its number, from 0.
        """
        size = self._settings.batch_size

        def make() -> Iterator[list[Tensor]]:
            seed = stable_seed(self._seed, "order", task_index, self.epoch)
            return self._read(images, shuffled_batches(len(images), size, seed))

        return Pass(make, len(images) // size)

    def in_order(self, images: TaskImages) -> Pass:
        """Every image once, in order."""
        batches = ordered_batches(len(images), self._settings.eval_batch_size)
        return Pass(lambda: self._read(images, batches), len(batches))

    def _read(self, images: TaskImages, batches: list[list[int]]) -> Iterator[list[Tensor]]:
        """Images (B, 3, S, S), labels (B,) and task labels (B,), which are 0."""
        images.set_epoch(self.epoch)
        self.epoch += 1
        workers = choose_workers(self._settings.num_workers, images, self._device)
        for pixels, labels in load(images, batches, self._device, self._dtype, workers):
            yield [pixels, labels, torch.zeros_like(labels)]


def avalanche_batches(dataset: Any, batch_size: int, *, shuffle: bool) -> DataLoader:
    """Batches of a dataset of Avalanche's, as its strategies load them.

    Args:
        dataset: an AvalancheDataset.
        batch_size: B.
        shuffle: whether each pass has another order.
    """
    arguments: dict[str, Any] = {}
    collate_from_data_or_kwargs(dataset, arguments)
    return DataLoader(dataset, batch_size, shuffle=shuffle, **arguments)
