"""The few logits of a test image that the analysis needs where all of them would be too many.

A whole record has a number for each test image and class, after each task: it grows with the square
of the classes. This one has a fixed number for each test image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from smope.streams.stream import Stream
from smope.training.settings import Record
from smope.training.spans import task_spans

TOP = 10
MOST_BYTES = 100_000_000  # of all logits over a run; CIFAR-100 in 10 tasks takes 8,000,000
BYTES_OF_A_LOGIT = 2
LARGEST_FLOAT16 = 65504.0


def bytes_of_all_logits(stream: Stream) -> int:
    """Bytes of a logit for each class so far of each test image so far, over all tasks."""
    images = total = 0
    for span, task in zip(task_spans(stream), stream.tasks, strict=True):
        images += len(task.test)
        total += BYTES_OF_A_LOGIT * images * span.stop
    return total


def resolved(record: Record, stream: Stream) -> Record:
    """What is recorded.

    Args:
        record: trainer.record.
        stream: its size decides where that is `auto`.

    Returns:
        `record`; `seen` or `top` in the place of `auto`.
    """
    if record != "auto":
        return record
    return "top" if bytes_of_all_logits(stream) > MOST_BYTES else "seen"


def top_logits_line(record: Record, stream: Stream) -> str | None:
    """A line for the user where trainer.record=auto does not record all logits.

    Args:
        record: trainer.record.
        stream: the tasks.

    Returns:
        The line; None where all is recorded, or the user has decided.
    """
    if record != "auto" or resolved(record, stream) != "top":
        return None
    size = bytes_of_all_logits(stream) / 1e6
    return (
        f"analysis/ gets the {TOP} largest logits of each test image and its true class's: all of "
        f"them would take {size:,.0f} MB (trainer.record=seen records all)"
    )


def summarised(
    logits: Tensor, labels: Tensor, own_classes: Sequence[int], new_from: int
) -> dict[str, Tensor]:
    """The record of one batch; all logits but `top` are minus the image's largest.

    Args:
        logits: (B, C) finite float32, over the classes seen so far.
        labels: (B,) true classes; one that is not seen yet has no logit.
        own_classes: of the task that the images belong to.
        new_from: the first class of the newest task; C if no class is new.

    Returns:
        The arrays of a batch, by name: see training/recording.py.
    """
    top = logits.amax(-1)
    relative = logits - top[:, None]
    classes = logits.shape[-1]
    best, best_classes = relative.topk(min(TOP, classes), dim=-1)
    known = labels < classes
    powers = relative.exp()
    power_sum = powers.sum(-1)
    label_logit = relative.gather(1, torch.where(known, labels, 0)[:, None])[:, 0]
    record = {
        "top": top,
        "top_logits": _half(best),
        "top_classes": best_classes.to(torch.int32),
        "label_logit": _half(torch.where(known, label_logit, -torch.inf)),
        "log_sum": power_sum.log(),
        "squared_probabilities": (torch.linalg.vector_norm(powers, dim=-1) / power_sum).square(),
    }
    own = torch.tensor(own_classes, device=logits.device)
    record["predicted_in_task"] = own[logits[:, own].argmax(-1)].to(torch.int32)
    if 0 < new_from < classes:
        record["best_old"] = _half(relative[:, :new_from].amax(-1))
        record["best_new"] = _half(relative[:, new_from:].amax(-1))
    return record


def _half(values: Tensor) -> Tensor:
    return values.clamp(min=-LARGEST_FLOAT16).half()
