"""Learning rates step by step, as in the authors' code.

Each function maps the base rate of an optimizer group and a step (or epoch), counted from 0, to the
rate used there. `lag` reproduces the order of calls in the authors' code: the first step runs at
the full base rate and each later one a step late.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from smope.errors import UserError
from smope.training.settings import TrainerSettings

LOWEST_RATE = 1e-6
Rate = Callable[[float, int, int], float]
"""(base rate, step of the phase, epoch of the phase) -> rate."""


def warm_frozen_cosine(
    base: float, step: int, total_steps: int, frozen_steps: int, lag: bool = True
) -> float:
    """Frozen steps at 1e-6, then a cosine from `base` to 1e-6, then 1e-6.

    Args:
        base: the group's rate.
        step: from 0.
        total_steps: where the cosine ends.
        frozen_steps: steps before the cosine.
        lag: the first step runs at `base`, and the frozen ones are steps 1 to `frozen_steps`.

    Returns:
        The rate of the step.
    """
    position = step - 1 if lag else step
    if position < 0:
        return base
    length = total_steps - frozen_steps
    if position < frozen_steps or position >= total_steps:
        return LOWEST_RATE
    cosine = math.cos(math.pi * (position - frozen_steps) / length)
    return LOWEST_RATE + (base - LOWEST_RATE) / 2 * (1 + cosine)


def epoch_cosine(base: float, epoch: int, epochs: int, lag: bool = True) -> float:
    """base · cos(99·pi·e / (200·(epochs - 1))): from `base` almost to 0, one value an epoch.

    Args:
        base: the group's rate.
        epoch: e, from 0.
        epochs: of the phase.
        lag: the second epoch repeats the rate of the first, and each later one is an epoch late.

    Returns:
        The rate of the epoch.
    """
    position = max(epoch - 1, 0) if lag else epoch
    return base * math.cos(99 * math.pi * position / (200 * max(epochs - 1, 1)))


def alignment_cosine(base: float, step: int, total_steps: int, lag: bool = True) -> float:
    """A cosine from `base` to 1e-6.

    Args:
        base: the rate.
        step: from 0.
        total_steps: where the cosine ends.
        lag: the first step runs at ten times `base`. The authors' code creates its optimizer with
            an unscaled rate, and the schedule takes over a step late.

    Returns:
        The rate of the step.
    """
    if lag and step == 0:
        return 10 * base
    return warm_frozen_cosine(base, step, total_steps, frozen_steps=0, lag=lag)


def make_schedule(settings: TrainerSettings, epochs: int, steps_per_epoch: int) -> Rate:
    """The schedule of one phase.

    Args:
        settings: schedule, frozen_steps, iter_step and schedule_lag.
        epochs: that the schedule is over.
        steps_per_epoch: training steps of an epoch.

    Returns:
        A function from base rate, step and epoch to the rate.

    Raises:
        UserError: the frozen steps leave nothing to train.
    """
    if settings.schedule == "epoch_cosine":
        return lambda base, _step, epoch: epoch_cosine(base, epoch, epochs, settings.schedule_lag)
    total_steps = (settings.iter_step or steps_per_epoch) * epochs
    if settings.frozen_steps >= total_steps:
        raise UserError(
            f"trainer.frozen_steps={settings.frozen_steps} must be below the steps of the "
            f"shortest phase, {total_steps} ({epochs} epochs of "
            f"{settings.iter_step or steps_per_epoch}); write trainer.frozen_steps=auto or "
            f"{max(total_steps - 1, 0)} at most, or train longer"
        )
    return lambda base, step, _epoch: warm_frozen_cosine(
        base, step, total_steps, settings.frozen_steps, settings.schedule_lag
    )
