"""Batches of a task's images on the device: which images, in which order, read by whom."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from smope.errors import UserError
from smope.streams.pixels.transforms import Batch, collate, resample

if TYPE_CHECKING:
    from smope.streams.task_images import TaskImages

MOST_WORKERS = 4


def in_order(count: int, size: int, least: int = 1) -> list[list[int]]:
    """Every one of `count` images once, the last batch as large as it comes out; joined to the one
    before where it has fewer than `least` images, which may be as many as there are processes.
    """
    batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def shuffled(count: int, size: int, seed: int) -> list[list[int]]:
    """An epoch's whole batches: a permutation of `count` images cut into pieces, an incomplete
    last one dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    # DataLoader draws one number before it shuffles; so does this, for the same order as with
    # shuffle=True
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    order = torch.randperm(count, generator=generator).tolist()
    return [order[start : start + size] for start in range(0, count - size + 1, size)]


def choose_workers(wanted: int | None, images: TaskImages, device: torch.device) -> int:
    """`wanted`, or where that is None, processes that read images while an accelerator computes.

    Pixels that are in memory need no reading, and on a CPU the processes would only take turns with
    the training.
    """
    if wanted is not None:
        return wanted
    return 0 if images.in_memory or device.type == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1)


def load(
    images: TaskImages,
    batches: Sequence[list[int]],
    device: torch.device,
    dtype: torch.dtype,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, 3, S, S) of `dtype` in [0, 1] and labels (B,) on `device`, for each batch of
    indices.

    No global generator is drawn from, so the batches that are left of an epoch are the same as in
    the whole of it. UserError where an image cannot be read or a worker has died.
    """
    loader = DataLoader(
        images.unresampled,
        batch_sampler=batches,
        generator=torch.Generator(),  # else DataLoader would draw from the global one
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for batch in _own_errors(loader):
        pixels = batch.pixels.to(device, non_blocking=True)
        with torch.autocast(device.type, enabled=False):  # pixels are pixels in every precision
            shown = resample(batch._replace(pixels=pixels), images.transform.image_size, dtype)
        yield shown, batch.labels.to(device, non_blocking=True)


def _own_errors(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader; what goes wrong in a worker process is said in one line, as without
    workers.
    """
    try:
        yield from loader
    except UserError as error:
        raise UserError(
            str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that reads images has died ({str(error).splitlines()[0]}), perhaps for "
            f"lack of memory; "
            f"lower trainer.num_workers={loader.num_workers}"
        ) from error
