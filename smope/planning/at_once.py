"""Whether several runs at a time fit into the memory of one device."""

from __future__ import annotations

from collections.abc import Sequence

from smope.errors import UserError
from smope.planning.lines import Plan, megabytes


def at_once_line(plans: Sequence[Plan], runs: int, option: str = "--at-once ") -> str:
    """Check that the largest of the planned runs fits so many times.

    Args:
        plans: of a sweep.
        runs: how many at a time.
        option: what sets `runs`, for messages, up to its value.

    Returns:
        A line with the sum.

    Raises:
        UserError: they do not fit, or the memory of the device is not known.
    """
    largest = max(plans, key=lambda plan: plan.run_memory)
    each, free = largest.run_memory, largest.free_memory
    where = largest.hardware or "this device"
    if free is None:
        raise UserError(
            f"{option}{runs}: the free memory of {where} is not known; leave it out, or plan "
            f"with a --hardware that has one (--list)"
        )
    fitting = int(free // each)
    if fitting < 1:
        raise UserError(
            f"{option}{runs}: one run needs {megabytes(each)}, and {where} has "
            f"{megabytes(free)} free; lower trainer.batch_size, or write "
            f"trainer.activation_checkpointing=true"
        )
    if fitting < runs:
        raise UserError(
            f"{option}{runs}: {runs} x {megabytes(each)} = {megabytes(runs * each)}, and {where} "
            f"has {megabytes(free)} free; write {option}{fitting}, or lower trainer.batch_size"
        )
    return (
        f"{runs} at once: {runs} x {megabytes(each)} = {megabytes(runs * each)} of "
        f"{megabytes(free)} free on {where}"
    )
