"""The images of one task as an Avalanche dataset, which is what Avalanche's experiences hold and
what training reads.

Importing this module imports Avalanche: see `stream.import_avalanche`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Literal, NamedTuple

import numpy
from avalanche.benchmarks.utils import ConstantSequence, DataAttribute, TransformGroups
from avalanche.benchmarks.utils.classification_dataset import (
    TaskAwareSupervisedClassificationDataset,
)
from torch import Tensor
from torch.utils.data import default_collate

from smope.streams.pixels.transforms import Transform, collate, resample
from smope.streams.selection import FreshlyDrawn, Selection, UnresampledImages, join_selections
from smope.streams.source import ImageSet


class Transforms(NamedTuple):
    """How images are shown in training and in evaluation."""

    train: Transform
    eval: Transform


class TaskImages(TaskAwareSupervisedClassificationDataset):
    """The images of one task: items are (float32 image (3, S, S) in [0, 1], label).

    What augmentation draws for an image depends on the seed, the epoch and the image's index in its
    source alone, never on batch order, workers, class order or other draws; no global generator is
    read or changed. Call `set_epoch` before making the epoch's iterator: worker processes copy the
    dataset when they start, so a loader with persistent workers would stay in its first epoch.

    For Avalanche this is an AvalancheDataset like any other. `eval()` shows the same images through
    the evaluation transform. Its other operations, such as `train()`, `subset()` and `concat()`,
    return Avalanche's own datasets over the same images. Their items are (image, label, task
    label), and their training augmentation draws from torch's global generator, because strategies
    never call `set_epoch`. The task label is always 0.

    Attributes:
        targets: label of each image, in the stream's numbering.
        source_index: index of each image in its split of the source.
        unresampled: the same images before resampling, for a loader that resamples whole batches on
            its device.
    """

    source_index: DataAttribute[int]

    def __init__(
        self, selection: Selection, transforms: Transforms, shown: Literal["train", "eval"]
    ) -> None:
        """Show a selection of images.

        Args:
            selection: which images of a source, and their labels.
            transforms: both ways of showing them.
            shown: which of the two is used.
        """
        targets: Any = selection.targets
        source_index: Any = selection.source_index
        task_labels: Any = ConstantSequence(0, len(selection))
        super().__init__(
            [selection],
            data_attributes=[
                DataAttribute(targets, "targets"),
                DataAttribute(task_labels, "targets_task_labels", use_in_getitem=True),
                DataAttribute(source_index, "source_index"),
            ],
            transform_groups=TransformGroups(
                {"train": FreshlyDrawn(transforms.train), "eval": FreshlyDrawn(transforms.eval)}
            ),
            collate_fn=collate_with_task_labels,
        )
        self._flat_data = self._flat_data.with_transforms(shown)
        self._selection = selection
        self._transforms = transforms
        self._shown: Literal["train", "eval"] = shown
        self.unresampled = UnresampledImages(selection, self.transform)

    @property
    def transform(self) -> Transform:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The transform that items are shown through."""
        return getattr(self._transforms, self._shown)

    @property
    def in_memory(self) -> bool:
        """True where all pixels are in memory, so that nothing has to be read or decoded."""
        return all(isinstance(image, numpy.ndarray) for image in self._selection.images.images)

    @property
    def image_set(self) -> ImageSet:
        """The split of the source that these images are part of."""
        return self._selection.images

    def indices(self, items: Sequence[int] | None = None) -> numpy.ndarray:
        """The index in its split of each of these images, or of those at some positions."""
        source = self._selection.source_index
        return numpy.array(source if items is None else [source[item] for item in items], int)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations are drawn from now on."""
        self._selection.epoch = epoch

    def pixels(self, item: int) -> numpy.ndarray:
        """Image `item` before any transform: RGB, (height, width, 3) uint8."""
        return self._selection[item][0].pixels

    def name(self, item: int) -> str:
        """What the source calls image `item`: its path where it is a file."""
        return self._selection.images.name(self._selection.source_index[item])

    def choose(self, items: Sequence[int]) -> TaskImages:
        """The images at these positions, in this order; each epoch draws the same for them."""
        return TaskImages(self._selection.choose(items), self._transforms, self._shown)

    def join(self, others: Sequence[TaskImages]) -> TaskImages:
        """These images and then those of other tasks of the same stream; each epoch draws the same
        for them.
        """
        selection = join_selections([images._selection for images in (self, *others)])
        return TaskImages(selection, self._transforms, self._shown)

    def __getitem__(self, item: Any) -> Any:
        """(image, label) at a position; of a slice, the chosen images."""
        if isinstance(item, slice):
            return self.choose(range(len(self))[item])
        batch = collate([self.unresampled[item]])
        return resample(batch, self.transform.image_size)[0], self._selection.targets[item]

    def with_transforms(self, group_name: str) -> Any:
        """The same images through Avalanche's transform group "train" or "eval"."""
        if group_name == "eval":
            # a copy: its epoch must not change with that of these images
            return TaskImages(copy(self._selection), self._transforms, "eval")
        return super().with_transforms(group_name)

    def subset(self, indices: Any) -> Any:
        """Avalanche's subset of these images; `choose` gives ours."""
        return self._avalanche_dataset().subset(indices)

    def concat(self, other: Any) -> Any:
        """Avalanche's concatenation; `join` gives ours."""
        return self._avalanche_dataset().concat(other)

    def _shallow_clone_dataset(self) -> Any:
        """What Avalanche's other operations change and return, such as `freeze_transforms`."""
        return self._avalanche_dataset()._shallow_clone_dataset()

    def _avalanche_dataset(self) -> TaskAwareSupervisedClassificationDataset:
        return TaskAwareSupervisedClassificationDataset([self])


def collate_with_task_labels(items: Sequence[Sequence[Any]]) -> list[Tensor]:
    """Images, labels and task labels (all 0) of items with or without a task label, as strategies
    expect them.
    """
    return default_collate([(image, label, 0) for image, label, *_ in items])
