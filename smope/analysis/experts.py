"""Which experts the test images use: load, overlap between tasks, dead experts.

Shapes: M images, L prompted blocks, H heads, E experts, K chosen experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import pandas
from numpy.typing import NDArray

from smope.analysis.run import Run
from smope.analysis.snapshots import Snapshot
from smope.errors import UserError

# Below this share of the possible range a block's experts are used as if there were only K.
COLLAPSED_BELOW = 0.1


def block_numbers(config: Mapping[str, Any], count: int) -> list[int]:
    """The numbers of the prompted blocks in the backbone, from 0.

    Args:
        config: A run's configuration; without method.blocks, the first blocks are prompted.
        count: How many blocks are prompted.
    """
    return list(config["method"].get("blocks") or range(count))


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

    In each block and head the loads, divided by K, are distributions over experts. The overlap is
    the part that two of them have in common, sum_e min(p_i(e), p_j(e)), averaged over blocks and
    heads: 0 if disjoint, 1 if equal.

    Args:
        run: A run that recorded its evaluations.
        after: After which task, from 1; None means the last.

    Returns:
        (T, T), 1 on the diagonal.
    """
    _, experts = chosen_experts(run, after)
    share = expert_load(run, after) / experts.shape[-1]
    common = numpy.minimum(share[:, None], share[None])  # (T, T, L, H, E)
    table = common.sum(-1).mean((-1, -2))
    names = range(1, len(share) + 1)
    return pandas.DataFrame(
        table, pandas.Index(names, name="task"), pandas.Index(names, name="other task")
    )


def expert_use(run: Run) -> pandas.DataFrame:
    """A row after each task for each prompted block, over the images of the tasks seen.

    after_task number of finished tasks
    block      number of the prompted block, from 1
    dead       share of experts that no image chose
    effective  exp of the entropy of (load / K): how many equally used experts would be as even, at
               most E; mean over heads
    busiest    load of the busiest expert; mean over heads
    """
    rows = []
    for after in run.snapshots.recorded:
        snapshot, experts = chosen_experts(run, after)
        load = load_from_choices(experts[snapshot.seen], snapshot.num_experts)
        share = load / experts.shape[-1]
        entropy = -(share * numpy.log(numpy.where(share > 0, share, 1))).sum(-1)
        for block in range(len(load)):
            dead = float((load[block] == 0).mean())
            busiest = float(load[block].max(-1).mean())
            rows.append((after, block + 1, dead, float(numpy.exp(entropy[block]).mean()), busiest))
    return pandas.DataFrame(rows, columns=["after_task", "block", "dead", "effective", "busiest"])


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
    frame["spread"] = (frame["effective"] - least) / (most - least)
    frame["collapsed"] = frame["spread"] < COLLAPSED_BELOW
    return frame
