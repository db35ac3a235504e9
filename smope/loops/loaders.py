"""The images of a task, from a loader of the user's, as a method and the alignment want them.

Letters: B batch, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor

from smope.errors import UserError
from smope.loops.inputs import check_pairs

ToLabels = Callable[[Tensor], Tensor]
"""Checks class ids (B,) and translates them into labels (B,) on the device of the method."""


class TaskBatches:
    """Batches of a task's images and labels, for Method.end_task and for class statistics.

    Args:
        loader: gives images (B, 3, S, S), class ids (B,) and, if it likes, more; as often as it is
            iterated over.
        plain_loader: the same for each image once, without augmentation.
        to_images: checks images, and puts them where the method is.
        to_labels: for class ids of the task.
        classes: the labels of the task.
    """

    def __init__(
        self,
        loader: Iterable[Sequence[Any]],
        plain_loader: Iterable[Sequence[Any]],
        to_images: Callable[[Any], Tensor],
        to_labels: ToLabels,
        classes: Sequence[int],
    ) -> None:
        for name, argument in (("loader", loader), ("plain_loader", plain_loader)):
            if isinstance(argument, Iterator) or not isinstance(argument, Iterable):
                raise UserError(
                    f"{name} must be something that can be iterated over several times, such as a "
                    f"DataLoader or a list of batches, got a {type(argument).__name__}"
                )
        self._loaders = {"train": loader, "plain": plain_loader}
        self._to_images = to_images
        self._to_labels = to_labels
        self._classes = classes

    def __call__(self, kind: Literal["train", "plain"]) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass; see methods.base.Batches. UserError where there is no image."""
        images_seen = 0
        for images, class_ids in map(first_two, self._loaders[kind]):
            with naming("loader"):
                checked = self._to_images(images)
                check_pairs(checked, class_ids)
                labels = self._to_labels(class_ids)
            images_seen += len(images)
            yield checked, labels
        if images_seen == 0:
            raise UserError("loader: gave no images; give the training images of the task")

    def of_every_class(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A pass over the plain images. UserError at its end if a class of the task had none."""
        missing = set(self._classes)
        for images, labels in self("plain"):
            missing -= set(labels.tolist())
            yield images, labels
        if missing:
            raise UserError(
                f"loader: gave no image of {len(missing)} of the task's {len(self._classes)} "
                f"classes; give images of all classes of begin_task, none dropped "
                f"(drop_last=False)"
            )


def first_two(batch: Sequence[Any]) -> tuple[Any, Any]:
    """Images and class ids of a batch, which may hold more."""
    if not isinstance(batch, Sequence) or len(batch) < 2:
        raise UserError(
            f"loader: a batch must hold images and class ids, got a {type(batch).__name__}; give "
            f"pairs (images, labels)"
        )
    labels = batch[1]
    with suppress(TypeError, ValueError, RuntimeError):  # check_pairs names what it is
        labels = torch.as_tensor(labels)
    return batch[0], labels


@contextmanager
def naming(argument: str) -> Iterator[None]:
    """Errors within it begin with the argument that they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{argument}: {error}") from error
