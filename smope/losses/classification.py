"""Cross-entropy over the classes of the current task.

Shapes: B batch, N all classes of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def task_cross_entropy(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Mean cross-entropy over the logits of `classes` alone.

    For the new classes of a class-incremental task it equals what the authors' code computes: that
    sets the logits of all earlier classes to minus infinity and cuts off later ones. Here no
    infinities enter the graph.

    Args:
        logits: (B, N).
        labels: (B,), each one of `classes`.
        classes: The classes of the task, ascending; gaps are allowed.

    Returns:
        A scalar, the mean over the batch.
    """
    first, last = classes[0], classes[-1]
    if last - first + 1 == len(classes):
        return F.cross_entropy(logits[:, first : last + 1], labels - first)
    # Not device=...: that would have every step wait for a GPU.
    chosen = torch.tensor(classes).to(labels.device, non_blocking=True)
    return F.cross_entropy(logits[:, chosen], torch.searchsorted(chosen, labels))
