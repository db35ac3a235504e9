"""Run directories as tables: scores, errors, experts, comparisons.

    from smope.analysis import load_runs, scores
    scores(load_runs("runs/digits/*"))  # a DataFrame, one row for each run

Everything is read from run directories, without model, data set or torch. Tasks are counted from 1,
as on the terminal.

run.py           Run: what the run.json of one run directory says
loading.py       find run directories, read them
labels.py        the label of a configuration, repeats of a seed
frames.py        scores, curves, costs, differences of configurations as DataFrames
tables.py        finished runs sorted into tables of methods, mean and spread over seeds
significance.py  whether two methods differ: over seeds, over images
rendering.py     tables as text, Markdown, CSV, LaTeX
run_list.py      every run in a line of its own
snapshots.py     what evaluation recorded after each task (trainer.record)
intervals.py     intervals of the final accuracy, over test images and over seeds
confusion.py     errors within a task and between tasks, confused classes
mistakes.py      the mistakes of which a run was surest, with pictures
audit_verdict.py what smope audit found out about a run
classes.py       accuracy and forgetting of single classes
transfer.py      intransigence and forward transfer, which need more than one accuracy matrix
calibration.py   calibration error, Brier score, bias towards new classes
open_set.py      telling classes of later tasks from known ones
experts.py       use of experts: load, overlap between tasks, dead experts
drift.py         how keys, values and choices of experts change, and whether forgetting follows
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smope.analysis.calibration import calibration_scores, reliability
    from smope.analysis.classes import class_accuracies, class_forgetting
    from smope.analysis.confusion import (
        class_confusion,
        confused_pairs,
        split_errors,
        task_confusion,
    )
    from smope.analysis.drift import (
        drift_and_forgetting,
        expert_drift,
        relation,
        rerouting_of_images,
    )
    from smope.analysis.experts import expert_load, expert_spread, expert_use, task_overlap
    from smope.analysis.frames import (
        accuracies,
        accuracy_matrix,
        costs,
        curves,
        differences,
        epochs,
        forgetting_by_task,
        scores,
        summarise,
    )
    from smope.analysis.loading import load_runs
    from smope.analysis.mistakes import Mistake, worst_mistakes
    from smope.analysis.open_set import open_set_scores
    from smope.analysis.run import Run
    from smope.analysis.significance import compare, compare_all, compare_images, compare_runs
    from smope.analysis.snapshots import Snapshot, Snapshots
    from smope.analysis.transfer import forward_transfer, intransigence

# No name here is that of a module: importing the module would hide the function.
MODULE_NAMES = {
    "calibration": ("calibration_scores", "reliability"),
    "classes": ("class_accuracies", "class_forgetting"),
    "confusion": ("class_confusion", "confused_pairs", "split_errors", "task_confusion"),
    "drift": ("drift_and_forgetting", "expert_drift", "relation", "rerouting_of_images"),
    "experts": ("expert_load", "expert_spread", "expert_use", "task_overlap"),
    "frames": (
        "accuracies", "accuracy_matrix", "costs", "curves", "differences", "epochs",
        "forgetting_by_task", "scores", "summarise",
    ),
    "loading": ("load_runs",),
    "mistakes": ("Mistake", "worst_mistakes"),
    "open_set": ("open_set_scores",),
    "run": ("Run",),
    "significance": ("compare", "compare_all", "compare_images", "compare_runs"),
    "snapshots": ("Snapshot", "Snapshots"),
    "transfer": ("forward_transfer", "intransigence"),
}  # fmt: skip
__all__ = [
    "Mistake", "Run", "Snapshot", "Snapshots", "accuracies", "accuracy_matrix",
    "calibration_scores", "class_accuracies", "class_confusion", "class_forgetting", "compare",
    "compare_all", "compare_images", "compare_runs", "confused_pairs", "costs", "curves",
    "differences", "drift_and_forgetting", "epochs", "expert_drift", "expert_load",
    "expert_spread", "expert_use", "forgetting_by_task", "forward_transfer", "intransigence",
    "load_runs", "open_set_scores", "relation", "reliability", "rerouting_of_images", "scores",
    "split_errors", "summarise", "task_confusion", "task_overlap", "worst_mistakes",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a name's module when it is first used, so that this package imports no pandas."""
    for module, names in MODULE_NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
