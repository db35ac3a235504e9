"""Whether several runs fit into the memory of one device at the same time, without timing them."""

from __future__ import annotations

from collections.abc import Sequence

from smope.config.config import Config
from smope.planning.at_once import at_once_line
from smope.planning.make_plan import make_plan
from smope.planning.same_work import work_key


def memory_line(configs: Sequence[Config], runs: int, option: str) -> str:
    """Check that the largest of some runs fits so many times into the free memory here.

    Args:
        configs: of the runs; those that take the same work are counted once.
        runs: how many at a time.
        option: what sets `runs`, for messages, up to its value.

    Returns:
        A line with the sum.

    Raises:
        UserError: they do not fit, or the memory of the device is not known.
    """
    different = {work_key(config): config for config in configs}
    plans = [
        make_plan(config, (), None, None, None, None, None, False) for config in different.values()
    ]
    return at_once_line(plans, runs, option)
