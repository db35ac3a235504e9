"""A data set before any pixel is decoded: which images there are and which class each one has.

Each file of this package that names a stream has a function `load(...) -> Source`, and
pixels/preload.py decodes the images of the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy

from smope.errors import UserError
from smope.streams.layouts.listing import LeftOut
from smope.streams.pixels.cache import CachedImage, original_image
from smope.streams.pixels.decode import StoredImage, decode


@dataclass(frozen=True)
class ImageSet:
    """The images of one split; all sequences have the same length.

    targets: class id of each image, a plain int in the source's own numbering 0..num_classes-1.
    images: files, encoded bytes, pixels, or pixels in the cache.
    names: what errors call each image; None names it by its path.
    tasks: the task of each image, 0, 1, ..., where the source decides that (domains, a table); None
        where tasks follow from the class order.
    """

    targets: Sequence[int]
    images: Sequence[StoredImage | CachedImage]
    names: Sequence[str] | None = None
    tasks: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def name(self, index: int) -> str:
        """What errors call image `index`."""
        if self.names:
            return self.names[index]
        image = original_image(self.images[index])
        return str(image) if isinstance(image, Path) else f"number {index}"

    def own_names(self) -> list[str] | None:
        """The names of all images; None where neither the source nor a path gives them one."""
        has_paths = any(isinstance(original_image(image), Path) for image in self.images[:1])
        return [self.name(i) for i in range(len(self))] if self.names or has_paths else None

    def pixels(self, index: int) -> numpy.ndarray:
        """Image `index` as RGB, (height, width, 3) uint8. UserError names an image that cannot be
        decoded.
        """
        image = self.images[index]
        if isinstance(image, CachedImage):
            return image.pixels(self.name(index))
        if isinstance(image, numpy.ndarray):
            return image
        return numpy.asarray(decode(image, self.name(index)))

    def decoded_size(self, index: int) -> tuple[int, int] | None:
        """Height and width of image `index`; None if it is not decoded yet."""
        image = self.images[index]
        if isinstance(image, CachedImage):
            return image.size
        return image.shape[:2] if isinstance(image, numpy.ndarray) else None

    def choose(self, indices: Sequence[int]) -> ImageSet:
        """The images of these indices, in this order."""
        return replace(
            self,
            targets=[self.targets[i] for i in indices],
            images=[self.images[i] for i in indices],
            names=self.names and [self.names[i] for i in indices],
            tasks=self.tasks and [self.tasks[i] for i in indices],
        )


@dataclass(frozen=True)
class Source:
    """A data set: its classes and its training and test images.

    name: of the stream.
    class_names: by class id.
    task_names: of the tasks that `ImageSet.tasks` numbers, such as the domains.
    facts: plain values that run.json records, such as the hash of a split that was drawn.
    left_out: files that lie among the images and are not used.
    """

    name: str
    class_names: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    task_names: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    def __post_init__(self) -> None:
        """UserError where the class id of an image is out of range."""
        last = len(self.class_names) - 1
        for split, images in (("training", self.train), ("test", self.test)):
            if len(images) and not (min(images.targets) >= 0 and max(images.targets) <= last):
                index = next(
                    i for i, target in enumerate(images.targets) if not 0 <= target <= last
                )
                raise UserError(
                    f"stream {self.name}: {split} image {images.name(index)} has label "
                    f"{images.targets[index]}, and the classes are 0..{last}; correct the labels "
                    "or the list of classes"
                )
