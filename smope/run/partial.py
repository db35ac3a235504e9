"""A run of the first tasks of a stream alone: a trial of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smope.training.history import History


class EndEarly(Exception):
    """Raised by PartialRun.after_task to stop a trial that is not worth continuing."""


@dataclass(frozen=True)
class PartialRun:
    """What is special about a partial run. It prints nothing and keeps no model.

    Attributes:
        tasks: how many tasks it trains on.
        after_task: called with what was measured after each task; may raise EndEarly.
        note: goes into run.json.
    """

    tasks: int
    after_task: Callable[[History], object]
    note: Mapping[str, Any]
