"""Which experts the test images use: load, overlap between tasks, dead experts.

Shapes: M images, L prompted blocks, H heads, E experts, K chosen experts, T tasks.
"""

from __future__ import annotations

from typing import Any

import numpy
import pandas
from numpy.typing import NDArray

from smope.analysis.run import Run
from smope.analysis.snapshots import Snapshot
from smope.errors import UserError
from smope.metrics.expert_use import (
    COLLAPSED_BELOW,
    block_numbers,
    effective_experts,
    max_violation,
    overlap,
    spread,
    unused_share,
)


def chosen_experts(run: Run, after: int | None = None) -> tuple[Snapshot, NDArray[numpy.int64]]:
    """A snapshot and the experts that its images chose.

    Args:
        run: A run that recorded its evaluations.
        after: After which task, from 1; None means the last.

    Returns:
        The snapshot, and its choices (M, L, H, K).

    Raises:
        UserError: If the run's method chooses no experts.
    """
    snapshot = run.snapshots.after(after) if after else run.snapshots.last
    if snapshot.experts is None:
        raise UserError(
            f"{run.path}: method {run.method} chooses no experts that were recorded; take a run "
            f"of a method that routes sparsely, such as method=smope"
        )
    return snapshot, snapshot.experts


def load_from_choices(experts: NDArray, num_experts: int) -> NDArray[numpy.float64]:
    """Share of images that chose each expert.

    Args:
        experts: (M, L, H, K) expert numbers.
        num_experts: E.

    Returns:
        (L, H, E); sums to K over experts.
    """
    counts = numpy.stack(
        [(experts == expert).any(-1).sum(0) for expert in range(num_experts)], axis=-1
    )
    return counts / max(len(experts), 1)


def expert_load(run: Run, after: int | None = None) -> NDArray[numpy.float64]:
    """Share of each seen task's test images that chose each expert.

    Args:
        run: A run that recorded its evaluations.
        after: After which task, from 1; None means the last.

    Returns:
        (T, L, H, E).
    """
    snapshot, experts = chosen_experts(run, after)
    return numpy.stack(
        [
            load_from_choices(experts[snapshot.tasks == task], snapshot.num_experts)
            for task in range(snapshot.tasks_done)
        ]
    )


def task_overlap(run: Run, after: int | None = None) -> pandas.DataFrame:
    """How far two tasks use the same experts.

    See `smope.metrics.expert_use.overlap`; the mean over blocks and heads.

    Args:
        run: A run that recorded its evaluations.
        after: After which task, from 1; None means the last.

    Returns:
        (T, T), 1 on the diagonal.
    """
    table = overlap(expert_load(run, after)).mean((-1, -2))
    names = range(1, len(table) + 1)
    return pandas.DataFrame(
        table, pandas.Index(names, name="task"), pandas.Index(names, name="other task")
    )


def expert_use(run: Run) -> pandas.DataFrame:
    """A row after each task for each prompted block, over the images of the tasks seen.

    after_task    number of finished tasks
    block         number of the prompted block, from 1
    dead          share of experts that no image chose
    effective     exp of the entropy of use: how many equally used experts would be as even, at most
                  E; mean over heads
    busiest       load of the busiest expert; mean over heads
    max_violation largest load over mean load, minus 1; mean over heads
    margin        how clearly an image's best K experts stand apart: K-th minus next score over the
                  score range; mean over images and heads, NaN in runs of older versions
    overlap       what two tasks' uses have in common; mean over heads and pairs of tasks, NaN
                  after the first task

    Block by block this is what run.json has in `experts`, see `smope.metrics.expert_use`.
    """
    frames = []
    uses = run.record.get("experts") or ()
    recorded = {use["after_task"]: use["margin"] for use in uses if "margin" in use}
    for after in run.snapshots.recorded:
        snapshot, _ = chosen_experts(run, after)
        load_of_task = expert_load(run, after)
        images = numpy.bincount(snapshot.tasks[snapshot.seen], minlength=after)
        load = numpy.average(load_of_task, axis=0, weights=images)
        pairs = overlap(load_of_task)[numpy.triu_indices(after, 1)]
        frames.append(
            pandas.DataFrame(
                {
                    "after_task": after,
                    "block": range(1, len(load) + 1),
                    "dead": unused_share(load).mean(-1),
                    "effective": effective_experts(load).mean(-1),
                    "busiest": load.max(-1).mean(-1),
                    "max_violation": max_violation(load).mean(-1),
                    "margin": recorded.get(after, numpy.nan),
                    "overlap": pairs.mean((0, -1)) if after > 1 else numpy.nan,
                }
            )
        )
    return pandas.concat(frames, ignore_index=True)


def expert_spread(run: Run) -> pandas.DataFrame:
    """How far the experts of each prompted block are from collapsing, after the last task.

    If all images choose the same K of E experts, the effective number is K; if experts are used
    evenly, it is E.

    Returns:
        A row for each block: block (its number in the backbone, from 0), effective, least (K), most
        (E), spread = (effective - least) / (most - least), and collapsed, whether the spread is
        below COLLAPSED_BELOW. No rows if every expert is always chosen.
    """
    last, experts = chosen_experts(run)
    use: Any = expert_use(run)
    use = use[use["after_task"] == use["after_task"].max()]
    least, most = experts.shape[-1], last.num_experts
    frame = pandas.DataFrame(
        {
            "block": block_numbers(run.record["config"], len(use)),
            "effective": use["effective"].to_numpy(),
            "least": least,
            "most": most,
        }
    )
    if least >= most:
        return frame.iloc[:0].assign(spread=[], collapsed=[])
    frame["spread"] = spread(frame["effective"], least, most)
    frame["collapsed"] = frame["spread"] < COLLAPSED_BELOW
    return frame
