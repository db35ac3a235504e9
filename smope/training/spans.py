"""Which classes of a stream are new in which task."""

from __future__ import annotations

from smope.methods.base import TaskSpan
from smope.streams.stream import Stream


def task_spans(stream: Stream) -> list[TaskSpan]:
    """The classes of each task, and which of them are new."""
    spans, seen = [], 0
    for task in stream.tasks:
        stop = max([seen - 1, *task.classes]) + 1
        spans.append(TaskSpan(task.index, seen, stop, task.classes))
        seen = stop
    return spans
