"""Cross-entropy over the classes of the current task, plain and with a margin.

Shapes: B batch, N all classes of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.errors import UserError

LOG_OF_NO_LABEL = math.log(1e4)
_last_checked: Sequence[int] = ()  # the classes for which labels were last checked


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

    Raises:
        UserError: A label is not one of `classes`. On an accelerator, where a check has the step
            wait, only the first batch of each task is checked.
    """
    check_labels(labels, classes)
    first, last = classes[0], classes[-1]
    if last - first + 1 == len(classes):
        return F.cross_entropy(logits[:, first : last + 1], labels - first)
    # Not device=...: that would have every step wait for a GPU.
    chosen = torch.tensor(classes).to(labels.device, non_blocking=True)
    return F.cross_entropy(logits[:, chosen], torch.searchsorted(chosen, labels))


def task_cosface(
    logits: Tensor, labels: Tensor, classes: Sequence[int], scale: float, margin: float
) -> Tensor:
    """CosFace among the classes of a task: cross-entropy after the cosine of the true class was
    lowered by a margin (Wang et al. 2018, arXiv 1801.09414).

    Args:
        logits: (B, N), scale · cosine.
        labels: (B,), each one of `classes`.
        classes: The classes of the task, ascending.
        scale: s, by which cosines are multiplied in `logits`.
        margin: m, of the cosine; 0: plain cross-entropy.

    Returns:
        A scalar, the mean over the batch.

    Raises:
        UserError: As task_cross_entropy.
    """
    check_labels(labels, classes)
    if margin:
        true = F.one_hot(labels, logits.shape[-1]).to(logits.dtype)
        logits = logits - scale * margin * true
    return task_cross_entropy(logits, labels, classes)


def symmetric_cross_entropy(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Half the cross-entropy among the classes of a task, and half the reverse one, in which
    prediction and label change places (Wang et al. 2019, arXiv 1908.06112).

    The logarithm of a label's 0 is that of 1e-4, as in the code of SLCA++ and SLDC, so the reverse
    one is log(1e4) · (1 - p) for the probability p of the true class.

    Args:
        logits: (B, N).
        labels: (B,), each one of `classes`.
        classes: The classes of the task, ascending.

    Returns:
        A scalar, the mean over the batch.

    Raises:
        UserError: As task_cross_entropy.
    """
    forward = task_cross_entropy(logits, labels, classes)
    chosen = torch.tensor(classes).to(labels.device, non_blocking=True)
    log_total = logits[:, chosen].logsumexp(-1)
    probability = (logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - log_total).exp()
    return 0.5 * forward + 0.5 * LOG_OF_NO_LABEL * (1 - probability).mean()


def check_labels(labels: Tensor, classes: Sequence[int]) -> None:
    """Refuse a batch with classes of other tasks, as from a replay buffer.

    Args:
        labels: (B,).
        classes: The classes of the task, ascending.

    Raises:
        UserError: As task_cross_entropy.
    """
    global _last_checked
    known = labels.device.type != "cpu" and classes == _last_checked
    if known or type(labels) is not Tensor or labels.is_meta or torch.compiler.is_compiling():
        return
    _last_checked = classes
    others = sorted(set(labels.tolist()) - set(classes))
    if others:
        shown = f"{classes[0]}..{classes[-1]}" if len(classes) > 1 else f"{classes[0]}"
        raise UserError(
            f"labels must be classes of the task ({shown}), got {others[0]}; for batches that hold "
            f"other classes, as from a replay buffer, let these compete too: "
            f"losses(images, labels, dataclasses.replace(task, classes=tuple(range(task.stop))))"
        )
