"""Decoded images on the device that trains, so that a batch is gathered and cropped there.

Pixels are those of streams/pixels/cache.py: bytes, at the size that an image was decoded to. For a
batch the CPU draws windows alone, from the random numbers that it draws from otherwise, and
streams/pixels/transforms.py resamples the same pixels on the same device. So no number changes.

Letters: B batch, h and w height and width of the largest part of a picture in the batch, P pixels
of all images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy
import torch
from torch import Tensor

from smope.errors import UserError
from smope.streams.pixels.transforms import Batch, sent
from smope.training.device import free_memory

if TYPE_CHECKING:
    from smope.streams.source import ImageSet
    from smope.streams.stream import Stream
    from smope.streams.task_images import TaskImages

AUTO_SHARE = 1 / 8  # of the free memory of a device, for images; the rest is for training steps
COPIED_AT_ONCE = 1 << 24  # pixels


class DeviceImages:
    """The images of a run that are on its device: all of them, or none.

    A split is copied when its first batch is wanted.

    Args:
        setting: trainer.images_on_device.
        stream: whose images, for training and for testing.
        device: where the method computes; its weights are there already.

    Raises:
        UserError: the setting is true, and the images are not decoded or do not fit.
    """

    def __init__(
        self, setting: bool | Literal["auto"], stream: Stream, device: torch.device
    ) -> None:
        self._device = device
        self._splits: dict[int, DeviceSplit] = {}
        self.bytes = _bytes_on(device, setting, stream)

    def split_of(self, images: TaskImages) -> DeviceSplit | None:
        """The split that some images are of; None where no images are on the device."""
        if not self.bytes:
            return None
        key = id(images.image_set)
        if key not in self._splits:
            self._splits[key] = DeviceSplit(images.image_set, self._device)
        return self._splits[key]


class DeviceSplit:
    """The images of one split of a source, one after another.

    Args:
        images: all of them, decoded.
        device: where the pixels are put.
    """

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self._images = images  # so that its id stays its own
        self._device = device
        sizes = [images.decoded_size(index) for index in range(len(images))]
        self._sizes = numpy.array(sizes, numpy.int64)
        self._ends = self._sizes.prod(1).cumsum()
        # positions, also those past the last pixel, take half the memory where int32 holds them
        is_small = int(self._ends[-1]) + int(self._sizes.max()) ** 2 < 1 << 31
        self._positions_dtype = torch.int32 if is_small else torch.int64
        self._pixels = torch.empty(int(self._ends[-1]), 3, dtype=torch.uint8, device=device)
        for first, last in self._chunks():
            pixels = [images.pixels(index).reshape(-1, 3) for index in range(first, last)]
            start, end = self._start(first), self._start(last)
            self._pixels[start:end] = torch.from_numpy(numpy.concatenate(pixels)).to(device)

    def batch(self, images: TaskImages, items: Sequence[int], labels: Tensor) -> Batch:
        """What transforms.collate makes of these images, on the device.

        Beyond the size of each picture there are pixels of others; no result depends on them.

        Args:
            images: of this split.
            items: which of them.
            labels: (B,), on the CPU.

        Returns:
            Pixels (B, h, w, 3), and windows on the CPU.
        """
        indices = images.indices(items)
        sizes = self._sizes[indices].tolist()
        shown = [
            images.unresampled.shown_part(item, *size)
            for item, size in zip(items, sizes, strict=True)
        ]
        height, width = (max(part[side] for part, _ in shown) for side in (2, 3))
        widths = self._sizes[indices, 1]
        corners = [
            part.top * line + part.left for (part, _), line in zip(shown, widths, strict=True)
        ]
        starts = self._ends[indices] - self._sizes[indices].prod(1) + numpy.array(corners)
        numbers = torch.from_numpy(numpy.stack([starts, widths])).to(self._positions_dtype)
        first, line = sent(numbers, self._device)
        rows = first[:, None] + line[:, None] * torch.arange(height, device=self._device)
        columns = torch.arange(width, device=self._device)
        positions = (rows[:, :, None] + columns).clamp_(max=len(self._pixels) - 1)  # (B, h, w)
        windows = torch.tensor([window for _, window in shown])
        return Batch(self._pixels[positions], windows, sent(labels, self._device))

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Numbers of images, from and up to, with about COPIED_AT_ONCE pixels together."""
        first = 0
        while first < len(self._ends):
            most = self._start(first) + COPIED_AT_ONCE
            last = max(int(numpy.searchsorted(self._ends, most, "right")), first + 1)
            yield first, last
            first = last

    def _start(self, index: int) -> int:
        return int(self._ends[index - 1]) if index else 0


def decoded_bytes(stream: Stream) -> int | None:
    """Bytes of all decoded images of a stream, for training and for testing.

    None if some are neither in memory nor in the cache, so that they would have to be decoded.
    """
    splits = {
        id(images.image_set): images.image_set
        for task in stream.tasks
        for images in (task.train, task.test)
    }
    total = 0
    for split in splits.values():
        for index in range(len(split)):
            size = split.decoded_size(index)
            if size is None:
                return None
            total += 3 * size[0] * size[1]
    return total


def _bytes_on(device: torch.device, setting: bool | Literal["auto"], stream: Stream) -> int:
    """Bytes of the images that will be on the device; 0 for none."""
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return 0
    size, free = decoded_bytes(stream), free_memory(device)
    if setting == "auto":
        return size if size is not None and size <= AUTO_SHARE * free else 0
    if size is None:
        raise UserError(
            "trainer.images_on_device=true needs all images decoded, in memory or in the cache, "
            "and these are not; raise stream.cache_gb, or write trainer.images_on_device=auto"
        )
    if size > free:
        raise UserError(
            f"trainer.images_on_device=true: the decoded images take {size / 1e9:.2f} GB, and "
            f"{device} has {free / 1e9:.2f} GB free; write trainer.images_on_device=auto"
        )
    return size
