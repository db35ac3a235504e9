"""Methods learn of each step of any optimizer that trains them.

Some routers update what they remember after each optimizer step, and expert dropout draws anew.
Loops of other people do not know that, so torch's hook for optimizers does it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class Stepped(Protocol):
    """What wants to know of steps."""

    def end_step(self) -> None: ...


_watched: weakref.WeakKeyDictionary[Stepped, frozenset[int]] = weakref.WeakKeyDictionary()


def watch_steps(learner: Stepped, parameters: Iterable[nn.Parameter]) -> None:
    """Call end_step after each step of an optimizer that has one of these parameters.

    Args:
        learner: has end_step.
        parameters: of the learner.
    """
    _register()
    _watched[learner] = frozenset(map(id, parameters))


def ignore_steps(learner: Stepped) -> None:
    """Call end_step of this learner no more."""
    _watched.pop(learner, None)


_registered = False


def _register() -> None:
    """Add one hook for all learners, once in a process."""
    global _registered
    if not _registered:
        register_optimizer_step_post_hook(_after_step)
        _registered = True


def _after_step(optimizer: Optimizer, *arguments: Any) -> None:
    for learner, parameters in list(_watched.items()):
        groups = optimizer.param_groups
        if any(id(parameter) in parameters for group in groups for parameter in group["params"]):
            learner.end_step()
