"""What a learner says to calls that come at the wrong time."""

from __future__ import annotations

from collections.abc import Sequence

from smope.errors import UserError
from smope.methods.base import Method, Phase


def no_task(name: str) -> UserError:
    """No task has begun; `name` is the call."""
    return UserError(f"{name}: there is no current task; call begin_task(classes) first")


def no_classes() -> UserError:
    """Nothing can be classified yet."""
    return UserError("there are no classes yet; call begin_task(classes) first")


def not_ended(tasks: int) -> UserError:
    """Another task begins before the last of `tasks` has ended."""
    return UserError(f"begin_task: task {tasks} has not ended; call end_task(loader) first")


def half_ended(name: str) -> UserError:
    """An end_task has failed before; `name` is the call."""
    return UserError(
        f"{name}: an earlier end_task stopped with an error and may have learned some of its "
        f"images already; load the state_dict() from before it"
    )


def no_loader(method: Method) -> UserError:
    """The method needs a loader in begin_task."""
    return UserError(
        f"begin_task: {type(method).__name__} looks at the images of a task before it trains; call "
        f"begin_task(classes, loader) with them"
    )


def no_steps(name: str, method: Method) -> UserError:
    """The method takes no steps now.

    Args:
        name: the call.
        method: what was to be trained.
    """
    return UserError(
        f"{name}: {type(method).__name__} takes no training steps in this task; train in "
        f"`for phase in learner.phases(epochs):`, or only where learner.trains, and call "
        f"end_task(loader)"
    )


def in_phases(method: Method, phases: Sequence[Phase]) -> UserError:
    """A loop without phases trains a method that has several.

    Args:
        method: what was to be trained.
        phases: of the task.
    """
    names = " and then ".join(phase.name for phase in phases)
    return UserError(
        f"loss: {type(method).__name__} learns a task in phases, {names}; train in "
        f"`for phase in learner.phases(epochs):`"
    )
