"""Features of the frozen backbone, computed once for images that are always shown in the same way.

Methods with two passes choose prompts by these features, and several methods classify them. They
depend on the backbone and on the pixels alone. So those of a test image, or of a training image
without augmentation, are computed once in a run, in batches of trainer.eval_batch_size in the order
of the images. Evaluation has the same batches and gets the same numbers to the bit. Training steps
get what another batch would give up to rounding, and a resumed run gets what the whole run got.
Augmented images are always computed. Checkpoints hold no features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from smope.backbones.known_features import KnownFeatures
from smope.distributed import collectives
from smope.methods.base import Method, Phase
from smope.training.feature_store import FeatureStore, Stored
from smope.training.precision import autocast

if TYPE_CHECKING:
    from smope.streams.source import ImageSet
    from smope.streams.stream import Task
    from smope.streams.task_images import TaskImages
    from smope.training.loading import TaskLoader


class FrozenFeatures:
    """Gives the features of a batch to whoever asks the method for them while the batch is in use.

    Args:
        method: with a frozen backbone; any other has no such features.
        store: keeps the features.
        needed_again: whether features of training images are read after the method has learned.

    Attributes:
        alone: whether images whose features are known need not be read at all.
    """

    def __init__(self, method: Method, store: FeatureStore, needed_again: bool) -> None:
        self.alone = False
        self.of_training = needed_again
        # else the features that evaluation classifies are the same, and feature_cache keeps them
        self.of_test = not method.features_are_the_backbones
        self._backbone = method.backbone
        self._store = store
        self._used = False
        self._sets: dict[int, _KnownRows] = {}

    @contextmanager
    def used(self, alone: bool = False) -> Iterator[None]:
        """Within the context, features are kept and given.

        Args:
            alone: nothing but features is read of images.
        """
        self._used, self.alone = self._backbone.frozen, alone
        try:
            yield
        finally:
            self._used = self.alone = False

    def holds(self, images: TaskImages) -> bool:
        """Whether the features of all images are known."""
        return self._applies(images) and self._rows_of(images).holds(images.indices())

    @contextmanager
    def batch(
        self, images: TaskImages, items: Sequence[int], pixels: Tensor, keep: bool
    ) -> Iterator[None]:
        """Within the context, the method finds the features of a batch.

        Args:
            images: what the batch was taken from.
            items: which of them.
            pixels: (B, 3, S, S), the batch.
            keep: whether features that are computed are kept.
        """
        if not self._applies(images):
            yield
            return
        rows, indices = self._rows_of(images), images.indices(items)
        keep = keep and not self.alone  # nobody comes after the reference
        known = KnownFeatures(pixels, self._on_device(rows.read(indices), pixels.device))
        new = known.features is None
        self._backbone.known = known if keep or not new else None
        try:
            yield
        finally:
            self._backbone.known = None
        if new and known.features is not None:
            with suppress(OSError):  # a full disk: they are computed again
                rows.add(indices, self._store.keep(known.features))

    def _applies(self, images: TaskImages) -> bool:
        return self._used and not images.transform.is_random

    def _rows_of(self, images: TaskImages) -> _KnownRows:
        key = id(images.image_set)
        if key not in self._sets:
            self._sets[key] = _KnownRows(images.image_set)
        return self._sets[key]

    @staticmethod
    def _on_device(features: Tensor | None, device: torch.device) -> Tensor | None:
        if features is None or device.type != "cuda":
            return features
        return features.pin_memory().to(device, non_blocking=True)


class _KnownRows:
    """Where the features of the images of one set are; the set itself is kept, so that its id stays
    its own.
    """

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self._stored: list[Stored] = []
        self._batch = numpy.full(len(images), -1, numpy.int32)
        self._row = numpy.zeros(len(images), numpy.int32)

    def add(self, indices: numpy.ndarray, stored: Stored) -> None:
        self._batch[indices] = len(self._stored)
        self._row[indices] = numpy.arange(len(indices))
        self._stored.append(stored)

    def holds(self, indices: numpy.ndarray) -> bool:
        return bool((self._batch[indices] >= 0).all())

    def read(self, indices: numpy.ndarray) -> Tensor | None:
        """(B, C) on the CPU; None if one of the images is not known."""
        if not self.holds(indices):
            return None
        batch, row = self._batch[indices], self._row[indices]
        if (batch == batch[0]).all() and (row == numpy.arange(len(row))).all():
            features = self._stored[batch[0]].read()
            if len(features) == len(indices):
                return features
        return torch.stack(
            [self._stored[b].row(r) for b, r in zip(batch.tolist(), row.tolist(), strict=True)]
        )


def compute_ahead(
    method: Method,
    tasks: Sequence[Task],
    phases: Sequence[Phase],
    loader: TaskLoader,
) -> None:
    """Compute the features of training images that several epochs will read.

    One of several processes would need the shares of the others, so each epoch then computes its
    own.

    Args:
        method: says which phases read them.
        tasks: whose images are trained on.
        phases: of the task.
        loader: loads the images.
    """
    epochs = sum(phase.epochs for phase in phases if method.reads_frozen_features(phase))
    if epochs < 2 or collectives.world() > 1 or not method.backbone.frozen:
        return
    for task in tasks:
        if task.train.transform.is_random or loader.frozen.holds(task.train_plain):
            continue
        for images, _ in loader.once(task.train_plain):
            with autocast(loader.precision, images.device):
                method.frozen_features(images)
