"""Components that start orthogonal to those before them, as in CODA-Prompt."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def orthogonal_to(earlier: Tensor, number: int) -> Tensor:
    """`number` unit vectors, random, orthogonal to each other and to the span of `earlier` (m, d)
    -> (number, d).

    Where d is too small for all of them, the last ones are random unit vectors. Drawn on the CPU:
    the same everywhere.
    """
    drawn = torch.randn(number, earlier.shape[1], dtype=torch.float64)
    basis = torch.linalg.qr(earlier.T.cpu().double()).Q
    room = max(0, earlier.shape[1] - basis.shape[1])
    free = drawn[:room]
    for _ in range(2):  # the second time for what rounding left
        free = free - free @ basis @ basis.T
    vectors = torch.cat([torch.linalg.qr(free.T).Q.T, drawn[room:]]) if room else drawn
    return (vectors / vectors.norm(dim=1, keepdim=True)).to(earlier)
