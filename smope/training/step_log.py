"""Losses and rates of single training steps, for a tracker that wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, stack

from smope.trackers.base import Tracker

WINDOW_STEPS = 50


class StepLog:
    """Collects losses and learning rates of training steps and sends them WINDOW_STEPS at a time.

    Losses stay on the device until then, so an accelerator is waited for once a window and not at
    every step.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._first = 0
        self._losses: list[Mapping[str, Tensor]] = []
        self._rates: list[Sequence[float]] = []

    def add(self, step: int, losses: Mapping[str, Tensor], rates: Sequence[float]) -> None:
        """Add one step.

        Args:
            step: its number in the run, from 1.
            losses: scalars without gradient, by name.
            rates: the learning rate of each optimizer group.
        """
        if not self._tracker.wants_steps:
            return
        if not self._losses:
            self._first = step
        self._losses.append(losses)
        self._rates.append(rates)
        if len(self._losses) == WINDOW_STEPS:
            self.flush()

    def flush(self) -> None:
        """Send what was collected."""
        losses, rates, self._losses, self._rates = self._losses, self._rates, [], []
        if not losses:
            return
        values = iter(stack([value.float() for step in losses for value in step.values()]).tolist())
        rows = [
            {**{name: next(values) for name in step}, **_named(step_rates)}
            for step, step_rates in zip(losses, rates, strict=True)
        ]
        self._tracker.log_steps(rows, first=self._first)


def _named(rates: Sequence[float]) -> dict[str, float]:
    """Rates by name. `learning_rate` is that of the last group, the classifier, as in metrics.csv;
    the others are numbered from 1.
    """
    *others, last = rates
    named = {f"learning_rate_group_{number}": rate for number, rate in enumerate(others, 1)}
    return {"learning_rate": last, **named}
