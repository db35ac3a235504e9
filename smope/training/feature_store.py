"""Keeps features of images: in memory up to a bound, beyond it on disk."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

BYTES_IN_MEMORY = 1 << 30  # 350,000 images of ViT-B


class InMemory(NamedTuple):
    """Features (b, C) in memory."""

    features: Tensor

    def read(self) -> Tensor:
        """All rows."""
        return self.features

    def row(self, number: int) -> Tensor:
        """One row, (C,)."""
        return self.features[number]


class OnDisk(NamedTuple):
    """Features (b, C) in a file."""

    file: IO[bytes]
    start: int
    shape: torch.Size
    dtype: torch.dtype

    def read(self) -> Tensor:
        """All rows."""
        return self._read(self.start, self.shape)

    def row(self, number: int) -> Tensor:
        """One row, (C,)."""
        row_bytes = self.shape[1] * self.dtype.itemsize
        return self._read(self.start + number * row_bytes, self.shape[1:])

    def _read(self, start: int, shape: torch.Size) -> Tensor:
        features = torch.empty(shape, dtype=self.dtype)
        self.file.seek(start)
        self.file.readinto(_bytes(features))  # pyright: ignore[reportAttributeAccessIssue]
        return features


Stored = InMemory | OnDisk


class FeatureStore:
    """Features of one run.

    The file has no name, lies in the run directory, and ends with the process. It takes at most
    half of the space that was free when it began: checkpoints need space too. Without a directory
    all features are in memory.

    Attributes:
        directory: of the run; it is made before the first features come.
        bytes_in_memory: the bound.
        size: bytes that are in memory.
    """

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.bytes_in_memory = BYTES_IN_MEMORY
        self.size = 0
        self._file: IO[bytes] | None = None
        self._most_on_disk = 0

    def keep(self, features: Tensor) -> Stored:
        """Keep features (b, C); OSError if the disk has no space for them."""
        features = features.detach().cpu().contiguous()
        size = features.numel() * features.element_size()
        if self.directory is None or self.size + size <= self.bytes_in_memory:
            self.size += size
            return InMemory(features)
        if self._file is None:
            self._most_on_disk = shutil.disk_usage(self.directory).free // 2
            self._file = tempfile.TemporaryFile(dir=self.directory)  # noqa: SIM115 (ends with us)
        start = self._file.seek(0, 2)
        if start + size > self._most_on_disk:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            self._file.write(_bytes(features))
            self._file.flush()
        except OSError:
            with suppress(OSError):
                self._file.truncate(start)
            raise
        return OnDisk(self._file, start, features.shape, features.dtype)


def _bytes(features: Tensor) -> memoryview:
    """The memory of a tensor; NumPy has no bfloat16."""
    return features.view(torch.uint8).numpy().data
