"""How keys, values and choices move from task to task, and whether that goes with forgetting.

Shapes: L prompted blocks, H heads, E experts, D head width, K chosen experts.
"""

from __future__ import annotations

from typing import Any

import numpy
import pandas
from numpy.typing import NDArray
from scipy.stats import spearmanr

from smope.analysis.experts import chosen, expert_use, load_of, task_overlap
from smope.analysis.runs import Run
from smope.analysis.snapshots import Snapshot
from smope.errors import UserError

MOVED = ("keys", "values", "rerouted", "overlap", "dead")


def change(old: NDArray, new: NDArray) -> NDArray[numpy.float64]:
    """Relative change of each row, |new - old| / |old|: (..., E, D) -> (..., E)."""
    return numpy.linalg.norm(new - old, axis=-1) / numpy.maximum(
        numpy.linalg.norm(old, axis=-1), 1e-12
    )


def _rows(snapshot: Snapshot, run: Run) -> tuple[NDArray, NDArray]:
    if snapshot.keys is None or snapshot.values is None:
        raise UserError(
            f"{run.path}: method {run.method} has no experts; take a run of one that has, as "
            f"method=smope"
        )
    return snapshot.keys, snapshot.values


def drift(run: Run) -> pandas.DataFrame:
    """Per task from the second on and per block: columns after_task, block, keys, values.

    Mean over heads and experts of the relative change since the task before; none where that one
    was not recorded.
    """
    rows = []
    for after in (after for after in run.evidence.recorded if after - 1 in run.evidence.recorded):
        old, new = _rows(run.evidence.after(after - 1), run), _rows(run.evidence.after(after), run)
        keys, values = (
            change(before, now).mean((-1, -2)) for before, now in zip(old, new, strict=True)
        )
        rows += [
            (after, block + 1, float(keys[block]), float(values[block]))
            for block in range(len(keys))
        ]
    return pandas.DataFrame(rows, columns=["after_task", "block", "keys", "values"])


def rerouted(old: NDArray, new: NDArray) -> NDArray[numpy.float64]:
    """Share of each image's choices that are no longer the same: (M, L, H, K) twice -> (M,); the
    order is no matter.
    """
    kept = (old[..., :, None] == new[..., None, :]).any(-1)
    return 1 - kept.mean((1, 2, 3))


def drift_and_forgetting(run: Run) -> pandas.DataFrame:
    """For each old task and each later one: columns after_task, task, lost (accuracy right after
    its own task - now), keys and values (relative change since then of the experts that the task's
    images chose, weighted by how often), rerouted (share of its images' choices that have changed),
    overlap (see `task_overlap`, now, mean over the tasks learned since), dead (share of experts
    that no image chooses now). Pairs of which one was not recorded are left out.
    """
    rows, recorded = [], run.evidence.recorded
    shared = {after: task_overlap(run, after) for after in recorded}
    dead: Any = expert_use(run).groupby("after_task")["dead"].mean()
    for task in (after - 1 for after in recorded):
        then, experts = chosen(run, task + 1)
        mine = then.tasks == task
        weight = load_of(experts[mine], then.num_experts)
        for after in (after for after in recorded if after > task + 1):
            now, later = chosen(run, after)
            moved = [
                float((weight * change(before, since)).sum() / weight.sum())
                for before, since in zip(_rows(then, run), _rows(now, run), strict=True)
            ]
            others = rerouted(experts[mine], later[now.tasks == task]).mean()
            lost = run.matrix[task][task] - run.matrix[after - 1][task]
            overlap = shared[after].loc[task + 1, task + 2 :].mean()
            rows.append(
                (after, task + 1, lost, *moved, float(others), float(overlap), float(dead[after]))
            )
    return pandas.DataFrame(rows, columns=["after_task", "task", "lost", *MOVED])


def relation(frame: Any) -> pandas.DataFrame:
    """Spearman's rank correlation of `lost` with each of MOVED: rows of these, columns rho, pairs.

    Pairs of tasks are not independent, so there is no p-value; NaN for fewer than three pairs or
    where nothing varies.
    """
    varied = [
        len(frame) > 2 and frame["lost"].nunique() > 1 and frame[name].nunique() > 1
        for name in MOVED
    ]
    correlate: Any = spearmanr
    rho = [
        float(correlate(frame["lost"], frame[name]).statistic) if varies else float("nan")
        for name, varies in zip(MOVED, varied, strict=True)
    ]
    return pandas.DataFrame(
        {"rho": rho, "pairs": len(frame)}, index=pandas.Index(MOVED, name="moved")
    )


def rerouting_of_images(run: Run) -> pandas.DataFrame:
    """Images of old tasks that were right after their own task, by whether they still are: columns
    kept (bool), images, rerouted (mean share of choices that have changed since). Forgotten images
    that were rerouted more point at routing.
    """
    last, experts = chosen(run)
    parts = []
    for task in (after - 1 for after in run.evidence.recorded if after < last.tasks_done):
        then, before = chosen(run, task + 1)
        mine, still = then.tasks == task, last.tasks == task
        moved = rerouted(before[mine], experts[still])
        right = then.correct[mine]
        parts.append(
            pandas.DataFrame({"kept": last.correct[still][right], "rerouted": moved[right]})
        )
    if not parts:
        return pandas.DataFrame(columns=["kept", "images", "rerouted"])
    groups = pandas.concat(parts).groupby("kept")["rerouted"]
    return pandas.DataFrame({"images": groups.size(), "rerouted": groups.mean()}).reset_index()
