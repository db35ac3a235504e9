"""The images of a source that one task uses, before any transform. Nothing here knows Avalanche,
so processes that read images need not import it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from smope.seeding import stable_seed
from smope.streams.pixels.transforms import (
    Part,
    Transform,
    Window,
    collate,
    cut,
    resample,
    shown_part,
)
from smope.streams.source import ImageSet


class UntransformedImage(NamedTuple):
    """RGB pixels (height, width, 3) uint8, and the seed of everything that is drawn for them."""

    pixels: numpy.ndarray
    seed: int


class Selection(Dataset):
    """Some images of a source with their labels in the stream's numbering; items are
    (`UntransformedImage`, label).

    The seed of an item depends on the stream's seed, the epoch and the image's index in its source
    alone: never on batch order, workers, class order or other draws.
    """

    def __init__(
        self,
        images: ImageSet,
        source_index: Sequence[int],
        targets: Sequence[int],
        seed: int,
        earlier_images: int = 0,
    ) -> None:
        """Select images of a source.

        Args:
            images: all images of one split of the source.
            source_index: which of `images` are selected, in this order.
            targets: the label of each selected image.
            seed: the stream's seed.
            earlier_images: the images of the source are numbered from here on, where a stream
                continues one whose images are elsewhere.
        """
        self.images = images
        self.source_index = [int(index) for index in source_index]
        self.targets = [int(target) for target in targets]
        self.seed = seed
        self.earlier_images = earlier_images
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: int) -> tuple[UntransformedImage, int]:
        pixels = self.images.pixels(self.source_index[item])
        return UntransformedImage(pixels, self.drawing_seed(item)), self.targets[item]

    def drawing_seed(self, item: int) -> int:
        """The seed of everything that is drawn for an image in this epoch."""
        return stable_seed(self.seed, self.epoch, self.earlier_images + self.source_index[item])

    def choose(self, items: Sequence[int]) -> Selection:
        """The selected images at these positions, in this order, at epoch 0."""
        return Selection(
            self.images,
            [self.source_index[item] for item in items],
            [self.targets[item] for item in items],
            self.seed,
            self.earlier_images,
        )


def join_selections(selections: Sequence[Selection]) -> Selection:
    """The images of several selections from one source as one, in the order given, at epoch 0."""
    first = selections[0]
    source_index = [index for selection in selections for index in selection.source_index]
    targets = [target for selection in selections for target in selection.targets]
    return Selection(first.images, source_index, targets, first.seed, first.earlier_images)


class UnresampledImages(Dataset):
    """What a transform shows of each selected image, for a loader that resamples whole batches on
    its device: items for `transforms.collate`.
    """

    def __init__(self, selection: Selection, transform: Transform) -> None:
        self._selection = selection
        self._transform = transform

    def __len__(self) -> int:
        return len(self._selection)

    def __getitem__(self, item: int) -> tuple[numpy.ndarray, Window, int]:
        image, label = self._selection[item]
        return *cut(image.pixels, self._transform, random.Random(image.seed)), label

    def shown_part(self, item: int, height: int, width: int) -> tuple[Part, Window]:
        """What is shown of an image whose pixels are elsewhere.

        Args:
            item: its position.
            height: of the image.
            width: of the image.

        Returns:
            The part that the result depends on, and the window.
        """
        generator = random.Random(self._selection.drawing_seed(item))
        return shown_part(height, width, self._transform, generator)


class FreshlyDrawn:
    """A transform as Avalanche calls it: its random numbers come from torch's global generator, as
    those of torchvision's transforms do, because Avalanche's strategies never call `set_epoch`.
    """

    def __init__(self, transform: Transform) -> None:
        self._transform = transform

    def __call__(self, image: UntransformedImage) -> Tensor:
        """The image as float32 (3, S, S) in [0, 1]."""
        seed = int(torch.randint(2**62, ())) if self._transform.is_random else image.seed
        pixels, window = cut(image.pixels, self._transform, random.Random(seed))
        return resample(collate([(pixels, window, 0)]), self._transform.image_size)[0]
