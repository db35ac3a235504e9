"""Random numbers of a training step, the same in one process and in several.

They come from torch's global generator of the device, which the trainer seeds and stores with a
checkpoint. Every process draws those of the whole batch and takes the rows of its share, so that
the generators stay the same in all processes.

Shapes: B images of this process's share of the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from smope.distributed import collectives


def normal(like: Tensor) -> Tensor:
    """Standard normal numbers in the shape (B, ...) and precision of `like`."""
    return _own_rows(torch.randn, like)


def uniform(like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), in the shape (B, ...) and precision of `like`."""
    return _own_rows(torch.rand, like)


def _own_rows(draw: Callable[..., Tensor], like: Tensor) -> Tensor:
    own, world = len(like), collectives.world()
    # consecutive shares, as by collectives.share
    whole = own if world == 1 else int(collectives.summed(torch.tensor(own)))
    first = whole * collectives.rank() // world
    drawn = draw(whole, *like.shape[1:], dtype=like.dtype, device=like.device)
    return drawn[first : first + own]
