"""How keys, values and choices of experts change, and whether forgetting goes with it.

Shapes: L prompted blocks, H heads, E experts, D head width, K chosen experts.
"""

from __future__ import annotations

from typing import Any

import numpy
import pandas
from numpy.typing import NDArray
from scipy.stats import spearmanr

from smope.analysis.experts import chosen_experts, expert_use, load_from_choices, task_overlap
from smope.analysis.run import Run
from smope.analysis.snapshots import Snapshot
from smope.errors import UserError

DRIFT_COLUMNS = ("keys", "values", "rerouted", "overlap", "dead")


def change(old: NDArray, new: NDArray) -> NDArray[numpy.float64]:
    """Relative change of each row, |new - old| / |old|.

    Args:
        old: (..., E, D).
        new: (..., E, D).

    Returns:
        (..., E).
    """
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


def expert_drift(run: Run) -> pandas.DataFrame:
    """Relative change of keys and values since the task before: after_task, block, keys, values.

    A row for each task from the second on and each block, mean over heads and experts. A task has
    no rows if the one before was not recorded.
    """
    rows = []
    for after in (after for after in run.snapshots.recorded if after - 1 in run.snapshots.recorded):
        old, new = (
            _rows(run.snapshots.after(after - 1), run),
            _rows(run.snapshots.after(after), run),
        )
        keys, values = (
            change(before, now).mean((-1, -2)) for before, now in zip(old, new, strict=True)
        )
        rows += [
            (after, block + 1, float(keys[block]), float(values[block]))
            for block in range(len(keys))
        ]
    return pandas.DataFrame(rows, columns=["after_task", "block", "keys", "values"])


def rerouted(old: NDArray, new: NDArray) -> NDArray[numpy.float64]:
    """Share of each image's choices that have changed; the order of choices does not matter.

    Args:
        old: (M, L, H, K) expert numbers.
        new: (M, L, H, K) expert numbers.

    Returns:
        (M,).
    """
    unchanged = (old[..., :, None] == new[..., None, :]).any(-1)
    return 1 - unchanged.mean((1, 2, 3))


def drift_and_forgetting(run: Run) -> pandas.DataFrame:
    """A row for each old task and each later one, after which both were recorded.

    after_task   the later task
    task         the old task
    lost         accuracy right after the old task minus accuracy now
    keys, values relative change since then of the experts that the task's images chose, weighted by
                 how often
    rerouted     share of the choices of the task's images that have changed
    overlap      `task_overlap` now, mean over the tasks learned since
    dead         share of experts that no image chooses now
    """
    rows, recorded = [], run.snapshots.recorded
    shared = {after: task_overlap(run, after) for after in recorded}
    dead: Any = expert_use(run).groupby("after_task")["dead"].mean()
    for task in (after - 1 for after in recorded):
        then, experts = chosen_experts(run, task + 1)
        of_task = then.tasks == task
        weight = load_from_choices(experts[of_task], then.num_experts)
        for after in (after for after in recorded if after > task + 1):
            now, later = chosen_experts(run, after)
            moved = [
                float((weight * change(before, since)).sum() / weight.sum())
                for before, since in zip(_rows(then, run), _rows(now, run), strict=True)
            ]
            others = rerouted(experts[of_task], later[now.tasks == task]).mean()
            lost = run.matrix[task][task] - run.matrix[after - 1][task]
            overlap = shared[after].loc[task + 1, task + 2 :].mean()
            rows.append(
                (after, task + 1, lost, *moved, float(others), float(overlap), float(dead[after]))
            )
    return pandas.DataFrame(rows, columns=["after_task", "task", "lost", *DRIFT_COLUMNS])


def relation(frame: Any) -> pandas.DataFrame:
    """Spearman's rank correlation of `lost` with each of DRIFT_COLUMNS: columns rho, pairs.

    Takes the frame of `drift_and_forgetting`. Pairs of tasks are not independent, so there is no
    p-value. NaN for fewer than three pairs or if nothing varies.
    """
    varied = [
        len(frame) > 2 and frame["lost"].nunique() > 1 and frame[name].nunique() > 1
        for name in DRIFT_COLUMNS
    ]
    correlate: Any = spearmanr
    rho = [
        float(correlate(frame["lost"], frame[name]).statistic) if varies else float("nan")
        for name, varies in zip(DRIFT_COLUMNS, varied, strict=True)
    ]
    return pandas.DataFrame(
        {"rho": rho, "pairs": len(frame)}, index=pandas.Index(DRIFT_COLUMNS, name="change")
    )


def rerouting_of_images(run: Run) -> pandas.DataFrame:
    """Images of old tasks that were right after their own task, by whether they still are.

    Columns still_right (bool), images, rerouted (mean share of choices that have changed since). If
    forgotten images were rerouted more, forgetting has to do with routing.
    """
    last, experts = chosen_experts(run)
    parts = []
    for task in (after - 1 for after in run.snapshots.recorded if after < last.tasks_done):
        then, before = chosen_experts(run, task + 1)
        of_task, still = then.tasks == task, last.tasks == task
        moved = rerouted(before[of_task], experts[still])
        right = then.correct[of_task]
        parts.append(
            pandas.DataFrame({"still_right": last.correct[still][right], "rerouted": moved[right]})
        )
    if not parts:
        return pandas.DataFrame(columns=["still_right", "images", "rerouted"])
    groups = pandas.concat(parts).groupby("still_right")["rerouted"]
    return pandas.DataFrame({"images": groups.size(), "rerouted": groups.mean()}).reset_index()
