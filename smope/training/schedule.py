"""Learning rates step by step, as the authors' program uses them.

Every function here maps a group's base rate and a step (or epoch), both counted from 0, to the rate
used there. `lag` reproduces the program's order of calls: the first step runs at the full base rate
and each later one a step late.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from smope.errors import UserError
from smope.training.settings import TrainerSettings

FLOOR = 1e-6
Rate = Callable[[float, int, int], float]
"""(base rate, step of the phase, epoch of the phase) -> rate."""


def warm_frozen_cosine(
    base: float, step: int, total_steps: int, frozen_steps: int, lag: bool = True
) -> float:
    """`frozen_steps` steps at 1e-6, then a cosine from `base` to 1e-6 over the rest of
    `total_steps`, then 1e-6.

    With lag the first step runs at `base` and the frozen ones are steps 1 to `frozen_steps`.
    """
    position = step - 1 if lag else step
    if position < 0:
        return base
    length = total_steps - frozen_steps
    if position < frozen_steps or position >= total_steps:
        return FLOOR
    return FLOOR + (base - FLOOR) / 2 * (1 + math.cos(math.pi * (position - frozen_steps) / length))


def epoch_cosine(base: float, epoch: int, epochs: int, lag: bool = True) -> float:
    """base · cos(99·pi·e / (200·(epochs - 1))): from `base` almost to 0, one value an epoch.

    With lag the second epoch repeats the first one's rate and each later one runs an epoch late.
    """
    position = max(epoch - 1, 0) if lag else epoch
    return base * math.cos(99 * math.pi * position / (200 * max(epochs - 1, 1)))


def alignment_cosine(base: float, step: int, total_steps: int, lag: bool = True) -> float:
    """A cosine from `base` to 1e-6 over `total_steps`. With lag the first step runs at ten times
    `base`: the program creates its optimizer with the unscaled rate, and the schedule takes over a
    step late.
    """
    if lag and step == 0:
        return 10 * base
    return warm_frozen_cosine(base, step, total_steps, frozen_steps=0, lag=lag)


def make_schedule(settings: TrainerSettings, epochs: int, steps_per_epoch: int) -> Rate:
    """The schedule of one phase. UserError where the frozen steps leave nothing to train."""
    if settings.schedule == "epoch_cosine":
        return lambda base, _step, epoch: epoch_cosine(base, epoch, epochs, settings.schedule_lag)
    total_steps = (settings.iter_step or steps_per_epoch) * epochs
    if settings.frozen_steps >= total_steps:
        raise UserError(
            f"trainer.frozen_steps={settings.frozen_steps} must be below the steps of the "
            f"shortest phase, "
            f"{total_steps} ({epochs} epochs of {settings.iter_step or steps_per_epoch}); lower "
            f"it or train longer"
        )
    return lambda base, step, _epoch: warm_frozen_cosine(
        base, step, total_steps, settings.frozen_steps, settings.schedule_lag
    )
