"""Features of test images, computed once where they cannot change any more.

After each task all test images so far are classified again. Where Method.features_are_final, only
the classifier has changed, so the features of the earlier evaluations are used. They are the same
to the bit, in the same batches, and so are the logits. Checkpoints do not hold them: a resumed run
computes them again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from smope.distributed import collectives
from smope.training.expert_counts import Choices

BYTES_IN_MEMORY = 1 << 30  # 350,000 test images of ViT-B


class PassedBatch(NamedTuple):
    """Test images that have passed the network up to the classifier.

    Attributes:
        features: (b, C) of this process's share.
        labels: (B,) of the whole batch.
        experts: what Recorder.chosen_experts gave.
        choices: what count_choices gave.
    """

    features: Tensor
    labels: Tensor
    experts: dict[str, Tensor]
    choices: Choices | None = None

    def to(self, device: torch.device | str) -> PassedBatch:
        """The same on a device."""
        experts = {key: value.to(device) for key, value in self.experts.items()}
        choices = self.choices and self.choices.to(device)
        return PassedBatch(self.features.to(device), self.labels.to(device), experts, choices)


class FeatureCache:
    """Keeps the batches of each task's test images, and gives them again.

    Features are in memory up to a bound, and beyond it in a file without a name in the run
    directory, which ends with the process. Without a directory all are in memory. A full disk means
    that they are computed again.

    Args:
        device: where batches are given.
        directory: of the run; it is made before the first batch comes.
        bytes_in_memory: the bound.
    """

    def __init__(
        self,
        device: torch.device,
        directory: Path | None = None,
        bytes_in_memory: int = BYTES_IN_MEMORY,
    ) -> None:
        self.directory = directory
        self.bytes_in_memory = bytes_in_memory
        self._device = device
        self._used = False
        self._in_memory = 0
        self._batches: dict[int, list[tuple[PassedBatch, _OnDisk | None]]] = {}
        self._file: IO[bytes] | None = None

    @property
    def size(self) -> int:
        """Bytes of the features that are in memory."""
        return self._in_memory

    @contextmanager
    def used(self, final: bool) -> Iterator[None]:
        """Within the context, batches are kept and given again if features are `final`."""
        self._used = final
        try:
            yield
        finally:
            self._used = False

    def holds(self, task: int) -> bool:
        """Whether batches() will need no pass through the network for the images of a task."""
        return self._used and task in self._batches

    def batches(self, task: int, fresh: Iterable[PassedBatch]) -> Iterator[PassedBatch]:
        """The batches of a task's test images, on the device.

        Args:
            task: its number.
            fresh: computes them; not iterated if they are kept.

        Returns:
            The batches, in order.
        """
        # All processes give the same, since gathering rows takes all of them.
        missing = collectives.largest([0 if self.holds(task) else 1])[0]
        if not missing:
            for batch, on_disk in self._batches[task]:
                features = batch.features if on_disk is None else on_disk.read()
                yield batch._replace(features=features).to(self._device)
        elif not self._used:
            yield from fresh
        else:
            yield from self._keep(task, fresh)

    def _keep(self, task: int, fresh: Iterable[PassedBatch]) -> Iterator[PassedBatch]:
        """The fresh batches; they are kept once the last of them is used."""
        entries: list[tuple[PassedBatch, _OnDisk | None]] = []
        complete = True
        for batch in fresh:
            yield batch
            try:
                entries.append(self._stored(batch.to("cpu")))
            except OSError:
                complete = False
        if complete:
            self._batches[task] = entries

    def _stored(self, batch: PassedBatch) -> tuple[PassedBatch, _OnDisk | None]:
        size = batch.features.numel() * batch.features.element_size()
        if self.directory is None or self._in_memory + size <= self.bytes_in_memory:
            self._in_memory += size
            return batch, None
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.directory)  # noqa: SIM115 (ends with us)
        on_disk = _OnDisk.written(self._file, batch.features)
        return batch._replace(features=batch.features[:0]), on_disk


class _OnDisk(NamedTuple):
    """Features in a file."""

    file: IO[bytes]
    start: int
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def written(cls, file: IO[bytes], features: Tensor) -> _OnDisk:
        start = file.seek(0, 2)
        try:
            file.write(features.numpy().data)
            file.flush()
        except OSError:
            with suppress(OSError):
                file.truncate(start)
            raise
        return cls(file, start, features.shape, features.dtype)

    def read(self) -> Tensor:
        features = torch.empty(self.shape, dtype=self.dtype)
        self.file.seek(self.start)
        self.file.readinto(features.numpy().data)  # pyright: ignore[reportAttributeAccessIssue]
        return features
