"""A loss against experts that become alike although images choose them together.

SimSMoE (Do et al. 2024, arXiv 2406.15883) compares the outputs of two experts by kernel CKA. The
output of a prompt expert is its value row, the same for every image. So the compared
representations are value rows, and the samples are their D channels: channel d of one expert
belongs to channel d of the other. SimSMoE counts how often a pair meets and takes the pairs above a
bound; here each pair weighs as much as it is chosen in this step, for any K, so nothing has to be
remembered or read back from the device.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

# As in SimSMoE.
KERNEL_WIDTH = 0.8
ALIKE_ABOVE = 0.5  # pairs below are different enough
TINY = 1e-20  # keeps CKA finite for values that are all equal, as they are at a start from zero


def kernel_cka(values: Tensor) -> Tensor:
    """Kernel CKA of each pair of experts, with an RBF kernel and the biased HSIC.

    With K_i[a, b] = exp(-(v_ia - v_ib)² / (2 · 0.8²)) and H the centring matrix,
    HSIC_ij = trace(K_i H K_j H) / (D - 1)² and CKA_ij = HSIC_ij / sqrt(HSIC_ii · HSIC_jj)
    (Gretton et al. 2005; Kornblith et al. 2019, arXiv 1905.00414).

    Args:
        values: (..., E, D).

    Returns:
        (..., E, E), in [0, 1]: 1 for equal rows, and for rows that differ by a sign or a constant;
        0 beside a row of equal channels.
    """
    apart = values.unsqueeze(-1) - values.unsqueeze(-2)
    kernels = (apart.square() / (-2 * KERNEL_WIDTH**2)).exp()
    rows = kernels.mean(-1, keepdim=True)
    centred = (kernels - rows - rows.mT + rows.mean(-2, keepdim=True)).flatten(-2)
    hsic = centred @ centred.mT  # the factor 1 / (D - 1)² cancels
    own = hsic.diagonal(dim1=-2, dim2=-1)
    return hsic / (own.unsqueeze(-1) * own.unsqueeze(-2) + TINY).sqrt()


def similarity_loss(values: Tensor, chosen: Tensor, top_k: int) -> Tensor:
    """The mean over images, heads and pairs of chosen experts of their CKA, where it is above 0.5.

    It costs E·D² + E²·D² multiplications for each head, whatever the batch.

    Args:
        values: (H, E, D).
        chosen: (B, H, E), whether an image chose an expert.
        top_k: K, at least 2.

    Returns:
        A scalar in [0, 1]. The gradient goes to the values alone.
    """
    chosen = chosen.to(values.dtype)
    together = torch.einsum("bhe,bhf->hef", chosen, chosen) / len(chosen)
    alike = kernel_cka(values)
    alike = torch.where(alike > ALIKE_ABOVE, alike, 0)
    pairs = (together * alike).triu(1).sum()
    return pairs / (len(values) * top_k * (top_k - 1) / 2)
