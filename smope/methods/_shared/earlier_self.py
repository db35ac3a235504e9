"""The network as it was before the current task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EarlierSelf(nn.Module):
    """Copies of what a task changes, with which the network can be run again as it was.

    Buffers: one for each tensor. A method lists it in `learning_only`.

    Args:
        trained: gives the parameters, and buffers that change, always in the same order.
    """

    def __init__(self, trained: Callable[[], Iterable[Tensor]]) -> None:
        super().__init__()
        self._trained = trained
        for index, parameter in enumerate(trained()):
            self.register_buffer(str(index), parameter.detach().clone())

    @torch.no_grad()
    def take(self) -> None:
        """Copy the tensors as they are now."""
        for earlier, parameter in self._pairs():
            earlier.copy_(parameter)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The network is as it was, without gradients, within the context.

        Values change and not tensors, because a compiled graph reads the same memory each time.
        """
        with torch.no_grad():
            present = [parameter.clone() for parameter in self._trained()]
            for earlier, parameter in self._pairs():
                parameter.copy_(earlier)
            try:
                yield
            finally:
                for value, parameter in zip(present, self._trained(), strict=True):
                    parameter.copy_(value)

    def before_and_after(self, features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """The features that images had before the task, and those that they have now.

        Args:
            features: images -> features (B, C).
            images: (B, 3, S, S).

        Returns:
            (B, 2C), the features of before in the first half.
        """
        with self.used():
            before = features(images)
        return torch.cat([before, features(images)], -1)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.buffers(), self._trained(), strict=True)
