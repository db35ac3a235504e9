"""How experts are used by the test images: load, overlap between tasks, dead experts.

Shapes: M images, L prompted blocks, H heads, E experts, K chosen experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import pandas
from numpy.typing import NDArray

from smope.analysis.runs import Run
from smope.analysis.snapshots import Snapshot
from smope.errors import UserError


def block_numbers(config: Mapping[str, Any], count: int) -> list[int]:
    """The numbers of the prompted blocks in the backbone, from 0: the first ones unless
    configured.
    """
    return list(config["method"].get("blocks") or range(count))


def chosen(run: Run, after: int | None = None) -> tuple[Snapshot, NDArray[numpy.int64]]:
    """A snapshot and its choices (M, L, H, K); UserError where the run's method chooses no
    experts.
    """
    snapshot = run.evidence.after(after) if after else run.evidence.last
    if snapshot.experts is None:
        raise UserError(
            f"{run.path}: method {run.method} chooses no experts that were recorded; take a run "
            f"of a method that "
            "routes sparsely, such as method=smope"
        )
    return snapshot, snapshot.experts


def load_of(experts: NDArray, num_experts: int) -> NDArray[numpy.float64]:
    """Share of images that chose each expert: choices (M, L, H, K) -> (L, H, E); sums to K over
    experts.
    """
    counts = numpy.stack(
        [(experts == expert).any(-1).sum(0) for expert in range(num_experts)], axis=-1
    )
    return counts / max(len(experts), 1)


def expert_load(run: Run, after: int | None = None) -> NDArray[numpy.float64]:
    """Load by the images of each task seen, (T, L, H, E): the share of the task's test images that
    chose the expert.
    """
    snapshot, experts = chosen(run, after)
    return numpy.stack(
        [
            load_of(experts[snapshot.tasks == task], snapshot.num_experts)
            for task in range(snapshot.tasks_done)
        ]
    )


def task_overlap(run: Run, after: int | None = None) -> pandas.DataFrame:
    """How far two tasks use the same experts: T x T, 1 on the diagonal.

    Per block and head the loads, divided by K, are distributions over experts; overlap is the part
    that they have in common, sum_e min(p_i(e), p_j(e)), averaged over blocks and heads: 0 disjoint,
    1 the same.
    """
    _, experts = chosen(run, after)
    share = expert_load(run, after) / experts.shape[-1]
    table = numpy.array([[numpy.minimum(a, b).sum(-1).mean() for b in share] for a in share])
    names = range(1, len(share) + 1)
    return pandas.DataFrame(
        table, pandas.Index(names, name="task"), pandas.Index(names, name="other task")
    )


def expert_use(run: Run) -> pandas.DataFrame:
    """After each task and for each prompted block (from 1), over the images of the tasks seen,
    means over heads.

    Columns after_task, block, dead (share of experts that no image chose), effective (exp of the
    entropy of the load divided by K: how many equally used experts would be as even, at most E),
    busiest (load of the busiest expert).
    """
    rows = []
    for after in run.evidence.recorded:
        snapshot, experts = chosen(run, after)
        load = load_of(experts[snapshot.seen], snapshot.num_experts)
        share = load / experts.shape[-1]
        entropy = -(share * numpy.log(numpy.where(share > 0, share, 1))).sum(-1)
        for block in range(len(load)):
            dead = float((load[block] == 0).mean())
            busiest = float(load[block].max(-1).mean())
            rows.append((after, block + 1, dead, float(numpy.exp(entropy[block]).mean()), busiest))
    return pandas.DataFrame(rows, columns=["after_task", "block", "dead", "effective", "busiest"])
