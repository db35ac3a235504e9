"""Expert dropout: in a training step some experts are not available to any image.

Others have to learn what the strongest would have taken. Shapes: H heads, E experts of a head, K
chosen experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smope.experts.bank import ExpertBank


class ExpertDropout:
    """Draws, once a training step, which experts of each head are available.

    The numbers are those of torch's global generator, which checkpoints have. Their shape does not
    depend on images, so that parts of a batch and several processes have the same experts.

    Args:
        share: The probability with which an expert drops out.
        at_least: K; so many experts of each head stay available.
    """

    def __init__(self, share: float, at_least: int) -> None:
        self.share = share
        self.at_least = at_least
        self._drawn = False

    @torch.no_grad()
    def draw(self, banks: Sequence[ExpertBank]) -> None:
        """Draw for the step under way, if that has not been done."""
        if self._drawn or self.share == 0:
            return
        self._drawn = True
        for bank in banks:
            lots = torch.rand(bank.counts.shape, device=bank.counts.device)
            available = lots >= self.share
            bank.available = available.scatter_(-1, lots.topk(self.at_least).indices, True)

    def end_step(self) -> None:
        """The next step draws again."""
        self._drawn = False
