"""Settings that follow from the data where the configuration says `auto`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUTO = "auto"
STEPS_PER_EPOCH = 8  # at least so many, where there are images enough
SMALLEST_BATCH = 16
LARGEST_BATCH = 128  # the paper's
MOST_FROZEN_STEPS = 80  # the paper's


def resolve(settings: Mapping[str, Any], train_images: int) -> dict[str, int]:
    """The values of `batch_size` and `frozen_steps` where they are auto.

    A batch is a power of two that leaves eight steps an epoch, but not below 16: smaller ones took
    longer and were not more accurate on eight classes of 15 photographs. The frozen steps are half
    an epoch. Neither exceeds the paper's value for CIFAR-100, 128 images and 80 steps. Both are the
    same for every method.

    Args:
        settings: the `trainer` group of a configuration.
        train_images: training images of the smallest task.

    Returns:
        The values by name; empty if nothing is auto.
    """
    resolved: dict[str, int] = {}
    batch_size = settings["batch_size"]
    if batch_size == AUTO:
        batch_size = resolved["batch_size"] = _batch_size(train_images)
    if settings["frozen_steps"] == AUTO:
        steps = train_images // batch_size
        resolved["frozen_steps"] = min(steps // 2, MOST_FROZEN_STEPS)
    return resolved


def _batch_size(train_images: int) -> int:
    batch_size = LARGEST_BATCH
    while batch_size > SMALLEST_BATCH and train_images // batch_size < STEPS_PER_EPOCH:
        batch_size //= 2
    return max(1, min(batch_size, train_images))
