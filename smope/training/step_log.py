"""What single training steps give, for a tracker that wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, stack

from smope.trackers.base import Tracker

WINDOW = 50  # steps


class StepLog:
    """Gathers losses and learning rates of training steps, and hands them on WINDOW steps at a
    time.

    Losses stay on the device until then: an accelerator is waited for once a window, not once a
    step.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._first = 0
        self._losses: list[Mapping[str, Tensor]] = []
        self._rates: list[Sequence[float]] = []

    def add(self, step: int, losses: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        """One step: its number in the run, from 1; scalar losses without gradient; a rate an
        optimizer group.
        """
        if not self._tracker.wants_steps:
            return
        if not self._losses:
            self._first = step
        self._losses.append(losses)
        self._rates.append(rates)
        if len(self._losses) == WINDOW:
            self.flush()

    def flush(self) -> None:
        """Hand on what there is."""
        losses, rates, self._losses, self._rates = self._losses, self._rates, [], []
        if not losses:
            return
        values = iter(stack([value.float() for step in losses for value in step.values()]).tolist())
        rows = [
            {**{name: next(values) for name in step}, **_named(own)}
            for step, own in zip(losses, rates, strict=True)
        ]
        self._tracker.log_steps(rows, first=self._first)


def _named(rates: Sequence[float]) -> dict[str, float]:
    """learning_rate is the last group's, the classifier's, as in metrics.csv; the others are
    numbered from 1.
    """
    *others, last = rates
    return {
        "learning_rate": last,
        **{f"learning_rate_group_{n}": rate for n, rate in enumerate(others, 1)},
    }
