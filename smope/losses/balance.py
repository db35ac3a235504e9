"""Losses against an uneven use of experts.

Every function takes one row for each image, (B, ..., E), where the axes between are prompted blocks
and heads. Each head of each block is a mixture of its own: it is balanced by itself, and the loss
is the mean over all of them. None of the values depends on how many blocks or heads there are.

Experts that are not available, to any image of a batch, do not count: the mixture of that step is
one of the others.

Shapes: B batch, E experts of a head, K chosen experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-10  # keeps the variation finite where nothing is used, as in the paper's code


def cv_squared(totals: Tensor, correction: int = 0, available: Tensor | None = None) -> Tensor:
    """The squared coefficient of variation, variance / mean².

    Shazeer et al. 2017, arXiv 1701.06538, section 4.

    Args:
        totals: (..., E), how much each expert was used.
        correction: 0 for the variance over E experts, 1 for the unbiased one over E - 1.
        available: (..., E) bool, the experts that count; None: all.

    Returns:
        (...,): 0 if all experts were used equally, also for a single expert.
    """
    if available is not None:
        number = available.sum(-1, keepdim=True)
        mean = (totals * available).sum(-1, keepdim=True) / number
        squares = ((totals - mean).square() * available).sum(-1)
        variance = squares / (number.squeeze(-1) - correction).clamp(min=1)
        return variance / (mean.squeeze(-1).square() + TINY)
    if totals.shape[-1] == 1:
        return totals.sum(-1) * 0
    return totals.var(-1, correction=correction) / (totals.mean(-1).square() + TINY)


def variation_loss(amounts: Tensor, correction: int = 0, available: Tensor | None = None) -> Tensor:
    """CV² of the sum over images: the importance loss for gates, the load loss for probabilities of
    being chosen (Shazeer et al. 2017, arXiv 1701.06538; Riquelme et al. 2021, arXiv 2106.05974).

    Args:
        amounts: (B, ..., E), by how much each image uses each expert.
        correction: As for cv_squared.
        available: (..., E), as for cv_squared.

    Returns:
        A scalar.
    """
    return cv_squared(amounts.sum(0), correction, available).mean()


def switch_balance_loss(
    probabilities: Tensor, expert_ids: Tensor, available: Tensor | None = None
) -> Tensor:
    """E · Σ_e f_e · P_e: the share f_e of all choices that are expert e, times its mean probability
    P_e. It is 1 for even use and E where all images choose the same expert.

    Fedus et al. 2021, arXiv 2101.03961, equation 4. For K > 1 the shares f_e are of K choices for
    each image (DeepSeek-V2, arXiv 2405.04434); counting images instead gives K times as much. The
    gradient comes through P alone.

    Args:
        probabilities: (B, ..., E), the softmax over all experts, or over those that are available.
        expert_ids: (B, ..., K).
        available: (..., E) bool, the experts that count as E; None: all.

    Returns:
        A scalar.
    """
    chosen = torch.zeros_like(probabilities).scatter_(-1, expert_ids, 1.0)
    share = chosen.mean(0) / expert_ids.shape[-1]
    number = probabilities.shape[-1] if available is None else available.sum(-1, keepdim=True)
    return (number * share * probabilities.mean(0)).sum(-1).mean()


def router_z_loss(logits: Tensor) -> Tensor:
    """The mean of logsumexp(logits)², which keeps logits small (Zoph et al. 2022, ST-MoE, arXiv
    2202.08906, equation 5); logits (B, ..., E) in float32.
    """
    return logits.logsumexp(-1).square().mean()
