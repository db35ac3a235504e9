"""Accuracy and forgetting of single classes, which the mean of a task hides."""

from __future__ import annotations

import numpy
import pandas

from smope.analysis.run import Run


def class_accuracies(run: Run) -> pandas.DataFrame:
    """Columns after_task, label, name, images, accuracy: over the test images of the tasks seen.

    The accuracies are Avalanche's ClassAccuracy. Their mean over classes after one task is what
    Avalanche's AMCA averages over time.
    """
    names = numpy.array([str(name) for name in run.record["class_names"]], dtype=object)
    frames = []
    for after in run.snapshots.recorded:
        snapshot = run.snapshots.after(after)
        labels, correct = snapshot.labels[snapshot.seen], snapshot.correct[snapshot.seen]
        images = numpy.bincount(labels, minlength=len(names))
        right = numpy.bincount(labels[correct], minlength=len(names))
        tested = numpy.flatnonzero(images)
        frames.append(
            pandas.DataFrame(
                {
                    "after_task": after,
                    "label": tested,
                    "name": names[tested],
                    "images": images[tested],
                    "accuracy": right[tested] / images[tested],
                }
            )
        )
    return pandas.concat(frames, ignore_index=True)


def class_forgetting(run: Run) -> pandas.DataFrame:
    """A row for each class that was learned before the last task, the most forgotten first.

    Columns label, name, learned (the first accuracy), best (before the last task), final, and
    forgetting = best - final, the definition of `metrics.forgetting` for classes.
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
