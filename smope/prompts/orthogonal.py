"""Components that start orthogonal to earlier ones, as in CODA-Prompt (Smith et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def orthogonal_to(earlier: Tensor, number: int) -> Tensor:
    """Random unit vectors that are orthogonal to each other and to `earlier`.

    At most d - m such vectors exist; any further ones are plain random unit vectors. They are drawn
    on the CPU, so that every device gets the same ones.

    Args:
        earlier: (m, d), vectors whose span is avoided.
        number: How many vectors to draw.

    Returns:
        (number, d), with device and type of `earlier`.
    """
    drawn = torch.randn(number, earlier.shape[1], dtype=torch.float64)
    basis = torch.linalg.qr(earlier.T.cpu().double()).Q
    dimensions_left = max(0, earlier.shape[1] - basis.shape[1])
    free = drawn[:dimensions_left]
    for _ in range(2):  # the second projection removes what rounding left of the first
        free = free - free @ basis @ basis.T
    vectors = drawn
    if dimensions_left:
        vectors = torch.cat([torch.linalg.qr(free.T).Q.T, drawn[dimensions_left:]])
    return (vectors / vectors.norm(dim=1, keepdim=True)).to(earlier)
