"""Wall-clock time and peak memory of a run, added to its history."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from smope.metrics.cost import peak_memory
from smope.training.history import History


class Stopwatch:
    """Measures the time between two calls, after the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Start from now; what went before belongs to nothing."""
        self._since = time.perf_counter()

    def add_to(self, history: History, work: Literal["train", "align", "eval"]) -> None:
        """Add the time since the last call to one kind of work, and note the peak memory.

        Args:
            history: where it is added.
            work: what the time was spent on.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        history.add_seconds(work, now - self._since)
        history.note_memory(peak_memory(self._device))
        self._since = now


def timed_batches(
    batches: Iterator[tuple[Tensor, Tensor]], history: History
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pass batches on and add the time that each was waited for to `history`.

    Args:
        batches: images and labels.
        history: its `seconds["wait"]` grows.

    Returns:
        The same batches.
    """
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        history.seconds["wait"] += time.perf_counter() - started
        if batch is None:
            return
        yield batch
