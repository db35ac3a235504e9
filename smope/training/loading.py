"""Batches of images on the device: which images, in which order, read by which processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from smope.distributed import collectives
from smope.errors import UserError
from smope.seeding import stable_seed
from smope.streams.pixels.transforms import Batch, collate, resample

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages
from smope.training.device_images import DeviceImages, DeviceSplit
from smope.training.frozen_features import FrozenFeatures
from smope.training.interruption import Interruption
from smope.training.settings import TrainerSettings

MOST_WORKERS = 4


class TaskLoader:
    """Loads the batches of a run, or this process's share of each batch.

    The order of images and their augmentation follow from the seed, the task and `epoch`, and from
    nothing else. A resumed run sets `epoch` and then loads what an uninterrupted run would.

    Attributes:
        device: where batches are given.
        precision: trainer.precision.
        epoch: passes over training images in the current task, over all its phases.
        frozen: gives the features of a batch that are known.
        on_device: the images that need no loading.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        interruption: Interruption,
        frozen: FrozenFeatures,
        on_device: DeviceImages,
    ) -> None:
        self.epoch = 0
        self.frozen = frozen
        self._settings = settings
        self.precision = settings.precision
        self._seed = seed
        self.device = device
        self._dtype = dtype
        self._interruption = interruption
        self.on_device = on_device

    def shuffled(
        self, images: TaskImages, task_index: int, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One training epoch: shuffled, augmented, an incomplete last batch dropped.

        Args:
            images: what to draw from.
            task_index: number of the task, from 0; part of the seed of the order.
            first: batches of the epoch to leave out, because they were trained on already.
            last: the batch to stop before; None for all.

        Returns:
            Images (B, 3, S, S) and labels (B,), batch by batch.
        """
        images.set_epoch(self.epoch)
        seed = stable_seed(self._seed, "order", task_index, self.epoch)
        self.epoch += 1
        batches = shuffled_batches(len(images), self._settings.batch_size, seed)
        yield from self._load(images, batches[first:last], keep=False)

    def in_order(self, images: TaskImages) -> Iterator[tuple[Tensor, Tensor]]:
        """Every training image once, in order; an epoch of its own for augmentation."""
        images.set_epoch(self.epoch)
        self.epoch += 1
        yield from self._load(images, self._ordered(images), keep=self.frozen.of_training)

    def of_test(self, images: TaskImages) -> Iterator[tuple[Tensor, Tensor]]:
        """Every test image once, in order."""
        images.set_epoch(self.epoch)
        yield from self._load(images, self._ordered(images), keep=self.frozen.of_test)

    def once(self, images: TaskImages) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, to compute features ahead; no epoch of augmentation."""
        yield from self._load(images, self._ordered(images), keep=True)

    def _ordered(self, images: TaskImages) -> list[list[int]]:
        size, least = self._settings.eval_batch_size, collectives.world()
        return ordered_batches(len(images), size, least)

    def _load(
        self, images: TaskImages, batches: Sequence[list[int]], keep: bool
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each batch; `keep` the features that are computed meanwhile."""
        shares = [collectives.share(batch) for batch in batches]
        for items, (pixels, labels) in zip(shares, self.read(images, shares), strict=True):
            self._interruption.agree()
            with self.frozen.batch(images, items, pixels, keep):
                yield pixels, labels

    def read(
        self, images: TaskImages, batches: Sequence[list[int]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches as they are, from wherever their pixels are fastest to get.

        Args:
            images: where the indices point.
            batches: indices of each batch.

        Returns:
            Images (B, 3, S, S) and labels (B,), batch by batch.
        """
        if self.frozen.alone and self.frozen.holds(images):
            return without_pixels(images, batches, self.device)
        split = self.on_device.split_of(images)
        if split is not None:
            return gathered(images, batches, split, self._dtype)
        workers = choose_workers(self._settings.num_workers, images, self.device)
        return load(images, batches, self.device, self._dtype, workers)


def ordered_batches(count: int, size: int, least: int = 1) -> list[list[int]]:
    """Cut 0..count-1 into batches, in order.

    Args:
        count: number of images.
        size: images of a batch; the last batch may have fewer.
        least: a last batch smaller than this is joined to the one before, since each process needs
            an image.

    Returns:
        The indices of each batch.
    """
    batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def shuffled_batches(count: int, size: int, seed: int) -> list[list[int]]:
    """Cut a permutation of 0..count-1 into batches; an incomplete last one is dropped.

    Args:
        count: number of images.
        size: images of a batch.
        seed: decides about the permutation.

    Returns:
        The indices of each batch.
    """
    generator = torch.Generator().manual_seed(seed)
    # DataLoader draws one number before it shuffles. So does this, for the same order as with
    # shuffle=True.
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    order = torch.randperm(count, generator=generator).tolist()
    return [order[start : start + size] for start in range(0, count - size + 1, size)]


def choose_workers(wanted: int | None, images: TaskImages, device: torch.device) -> int:
    """How many processes read images.

    Pixels in memory need no reading, and on a CPU such processes would only compete with training.

    Args:
        wanted: trainer.num_workers; None to choose.
        images: what is read.
        device: where the method computes.

    Returns:
        `wanted` where it is set; else 0, or up to 4 for files and an accelerator.
    """
    if wanted is not None:
        return wanted
    if images.in_memory or device.type == "cpu":
        return 0
    return min(MOST_WORKERS, os.cpu_count() or 1)


def load(
    images: TaskImages,
    batches: Sequence[list[int]],
    device: torch.device,
    dtype: torch.dtype,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read, decode and resize batches of images.

    No global generator is drawn from, so the last batches of an epoch are the same whether or not
    the first ones are loaded.

    Args:
        images: where the indices point.
        batches: indices of each batch.
        device: where the tensors are put.
        dtype: of the pixels.
        workers: processes that read; 0 reads in this one.

    Returns:
        Images (B, 3, S, S) in [0, 1] and labels (B,), batch by batch.

    Raises:
        UserError: an image cannot be read, or a reading process has died.
    """
    loader = DataLoader(
        images.unresampled,
        batch_sampler=batches,
        generator=torch.Generator(),  # else DataLoader would draw from the global one
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for batch in _with_plain_errors(loader):
        pixels = batch.pixels.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        yield _resampled(Batch(pixels, batch.windows, labels), images, dtype)


def gathered(
    images: TaskImages,
    batches: Sequence[list[int]],
    split: DeviceSplit,
    dtype: torch.dtype,
) -> Iterator[tuple[Tensor, Tensor]]:
    """As load(), for images that are on the device.

    Args:
        images: where the indices point.
        batches: indices of each batch.
        split: that the images are of.
        dtype: of the pixels.

    Returns:
        Images (B, 3, S, S) in [0, 1] and labels (B,), batch by batch.
    """
    targets = torch.tensor(list(images.targets))
    for items in batches:
        yield _resampled(split.batch(images, items, targets[items]), images, dtype)


def _resampled(batch: Batch, images: TaskImages, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What a method is given of a batch: images and labels."""
    with torch.autocast(batch.pixels.device.type, enabled=False):  # pixels keep their precision
        return resample(batch, images.transform.image_size, dtype), batch.labels


def without_pixels(
    images: TaskImages, batches: Sequence[list[int]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """As load(), for images of which nothing is read but features that are known.

    Args:
        images: where the indices point.
        batches: indices of each batch.
        device: where the tensors are put.

    Returns:
        Empty tensors (B, 0) and labels (B,), batch by batch.
    """
    targets = torch.tensor(list(images.targets))
    for batch in batches:
        yield torch.empty(len(batch), 0, device=device), targets[batch].to(device)


def _with_plain_errors(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader; an error in a worker process keeps the one line it has without."""
    try:
        yield from loader
    except UserError as error:
        last_line = str(error).strip().splitlines()[-1]
        raise UserError(last_line.partition("UserError: ")[2] or str(error)) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that reads images has died ({str(error).splitlines()[0]}), perhaps for "
            f"lack of memory; lower trainer.num_workers={loader.num_workers}"
        ) from error
