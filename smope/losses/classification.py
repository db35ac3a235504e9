"""Cross-entropy over the classes of the current task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def task_cross_entropy(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Mean cross-entropy with only `classes` (ascending, no gaps needed) competing.

    logits (B, num_classes), labels (B,), each one of `classes`. For the new classes of a
    class-incremental task it is equal to setting the logits of all earlier classes to minus
    infinity and cutting later ones off, as the authors' program does, without infinities in the
    graph.
    """
    first, last = classes[0], classes[-1]
    if last - first + 1 == len(classes):
        return F.cross_entropy(logits[:, first : last + 1], labels - first)
    # Not device=...: that would have every step wait for a GPU.
    chosen = torch.tensor(classes).to(labels.device, non_blocking=True)
    return F.cross_entropy(logits[:, chosen], torch.searchsorted(chosen, labels))
