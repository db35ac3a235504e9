"""Features of test images, computed once where they cannot change any more.

After each task all test images so far are classified again. Where Method.features_are_final, only
the classifier has changed, so the features of the earlier evaluations are used. They are the same
to the bit, in the same batches, and so are the logits. Checkpoints do not hold them: a resumed run
computes them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from smope.distributed import collectives
from smope.training.expert_counts import Choices
from smope.training.feature_store import FeatureStore, Stored


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

    A full disk means that they are computed again.

    Args:
        device: where batches are given.
        store: keeps the features.
    """

    def __init__(self, device: torch.device, store: FeatureStore) -> None:
        self.store = store
        self._device = device
        self._used = False
        self._batches: dict[int, list[tuple[PassedBatch, Stored]]] = {}

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
            for batch, stored in self._batches[task]:
                yield batch._replace(features=stored.read()).to(self._device)
        elif not self._used:
            yield from fresh
        else:
            yield from self._keep(task, fresh)

    def _keep(self, task: int, fresh: Iterable[PassedBatch]) -> Iterator[PassedBatch]:
        """The fresh batches; they are kept once the last of them is used."""
        entries: list[tuple[PassedBatch, Stored]] = []
        complete = True
        for batch in fresh:
            yield batch
            try:
                stored = self.store.keep(batch.features)
                rest = batch._replace(features=batch.features.new_empty(0))
                entries.append((rest.to("cpu"), stored))
            except OSError:
                complete = False
        if complete:
            self._batches[task] = entries
