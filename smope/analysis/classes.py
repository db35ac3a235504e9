"""Accuracy and forgetting of single classes: a task's mean hides which of its classes were lost."""

from __future__ import annotations

import pandas

from smope.analysis.runs import Run


def class_accuracies(run: Run) -> pandas.DataFrame:
    """Columns after_task, label, name, images, accuracy: over the test images of the tasks seen.

    The mean over classes of one after_task is what Avalanche's AMCA averages over time; its
    ClassAccuracy is the same.
    """
    rows = []
    for after in run.evidence.recorded:
        snapshot = run.evidence.after(after)
        images = pandas.DataFrame(
            {"label": snapshot.labels[snapshot.seen], "right": snapshot.correct[snapshot.seen]}
        )
        for label, right in images.groupby("label")["right"]:
            name = run.record["class_names"][label]
            rows.append((after, label, name, len(right), right.mean()))
    return pandas.DataFrame(rows, columns=["after_task", "label", "name", "images", "accuracy"])


def class_forgetting(run: Run) -> pandas.DataFrame:
    """A row a class that was there before the last task: label, name, learned (the first accuracy),
    best (before the last task), final, forgetting = best - final; those that lost most first.

    The definition of metrics.forgetting with classes in the place of tasks.
    """
    frame = class_accuracies(run)
    last = frame["after_task"].max()
    final = frame[frame["after_task"] == last].set_index("label")
    earlier = frame[frame["after_task"] < last].groupby("label")["accuracy"]
    table = pandas.DataFrame({"learned": earlier.first(), "best": earlier.max()})
    table.insert(0, "name", final["name"])
    table["final"] = final["accuracy"]
    table["forgetting"] = table["best"] - table["final"]
    return table.sort_values("forgetting", ascending=False, kind="stable").reset_index()
