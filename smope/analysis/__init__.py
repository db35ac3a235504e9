"""From run directories to tables: where forgetting comes from, how experts are shared, what a
comparison is worth.

    from smope.analysis import load_runs, scores
    scores(load_runs("runs/digits/*"))  # a DataFrame, one row a run

Reads run directories only: no model, no data, no torch. Tasks are counted from 1, as on the
terminal.

runs.py         what a run is, which there are, scores, curves, costs, what differs between
                configurations
snapshots.py    what evaluation kept after each task (trainer.record)
confusion.py    errors within a task and between tasks, confusion
classes.py      accuracy and forgetting of single classes
transfer.py     backward, forward transfer, intransigence of runs
calibration.py  calibration: ECE, Brier score, bias between old and new classes
open_set.py     open set: telling classes of tasks to come from known ones
experts.py      load, overlap between tasks, dead experts
drift.py        drift: how keys, values and choices move, and whether that goes with forgetting
significance.py whether two methods differ: over seeds, over images
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smope.analysis.calibration import calibration, reliability
    from smope.analysis.classes import class_accuracies, class_forgetting
    from smope.analysis.confusion import class_confusion, split_errors, task_confusion
    from smope.analysis.drift import drift, drift_and_forgetting, relation, rerouting_of_images
    from smope.analysis.experts import expert_load, expert_use, task_overlap
    from smope.analysis.open_set import open_set
    from smope.analysis.runs import (
        Run,
        accuracies,
        accuracy_matrix,
        costs,
        curves,
        differences,
        epochs,
        forgetting_by_task,
        load_runs,
        scores,
        summarise,
    )
    from smope.analysis.significance import compare, compare_all, compare_images, compare_runs
    from smope.analysis.snapshots import Evidence, Snapshot
    from smope.analysis.transfer import forward_transfer, intransigence

HOMES = {
    "calibration": ("calibration", "reliability"),
    "classes": ("class_accuracies", "class_forgetting"),
    "significance": ("compare", "compare_all", "compare_images", "compare_runs"),
    "drift": ("drift", "drift_and_forgetting", "relation", "rerouting_of_images"),
    "snapshots": ("Evidence", "Snapshot"),
    "experts": ("expert_load", "expert_use", "task_overlap"),
    "confusion": ("class_confusion", "split_errors", "task_confusion"),
    "open_set": ("open_set",),
    "runs": (
        "Run", "accuracies", "accuracy_matrix", "costs", "curves", "differences", "epochs", "forgetting_by_task",
        "load_runs", "scores", "summarise",
    ),
    "transfer": ("forward_transfer", "intransigence"),
}  # fmt: skip
__all__ = [
    "Evidence", "Run", "Snapshot", "accuracies", "accuracy_matrix", "calibration", "class_accuracies",
    "class_confusion", "class_forgetting", "compare", "compare_all", "compare_images", "compare_runs", "costs",
    "curves", "differences", "drift", "drift_and_forgetting", "epochs", "expert_load", "expert_use",
    "forgetting_by_task", "forward_transfer", "intransigence", "load_runs", "open_set", "relation", "reliability",
    "rerouting_of_images", "scores", "split_errors", "summarise", "task_confusion", "task_overlap",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Names come from their files when first used: importing the package imports no pandas."""
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
