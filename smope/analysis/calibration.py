"""Does a probability of 0.8 mean that 8 of 10 images are right, and are new classes preferred?

Probabilities are the softmax over the classes seen so far.
"""

from __future__ import annotations

from typing import Any

import numpy
import pandas
from numpy.typing import NDArray

from smope.analysis.run import Run
from smope.analysis.snapshots import Snapshot

BINS = 15


def reliability(confidence: NDArray, correct: NDArray, bins: int = BINS) -> pandas.DataFrame:
    """Accuracy and confidence in bins of equal width over (0, 1].

    Args:
        confidence: (images,) largest probability of each image.
        correct: (images,) whether each image is classified right.
        bins: Number of bins.

    Returns:
        A row for each bin: low, high, images, confidence, accuracy (means, NaN in an empty bin).
    """
    edges = numpy.linspace(0, 1, bins + 1)
    index = numpy.clip(numpy.ceil(numpy.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    groups: Any = pandas.DataFrame(
        {"confidence": confidence, "accuracy": numpy.asarray(correct, float)}
    ).groupby(index)
    table: Any = groups.mean().reindex(range(bins))
    table.insert(0, "images", groups.size().reindex(range(bins), fill_value=0))
    table.insert(0, "high", edges[1:])
    table.insert(0, "low", edges[:-1])
    return table


def expected_calibration_error(confidence: NDArray, correct: NDArray, bins: int = BINS) -> float:
    """ECE: mean over images of |accuracy - mean confidence| of the image's bin; 0 is perfect.

    Guo et al. 2017 (arXiv 1706.04599), 15 bins of equal width.

    Args:
        confidence: (images,) largest probability of each image.
        correct: (images,) whether each image is classified right.
        bins: Number of bins.
    """
    table: Any = reliability(confidence, correct, bins)
    gaps = (table["accuracy"] - table["confidence"]).abs().fillna(0.0)
    return float((gaps * table["images"]).sum() / table["images"].sum())


def calibration_scores(run: Run) -> pandas.DataFrame:
    """After each task, over the images of the tasks seen.

    Columns after_task, accuracy, confidence (mean of the largest probability), ece, brier: the mean
    over images of the sum over classes of (probability - [class is the label])², 0 is perfect, 2
    the worst (Brier 1950, the form for several classes). From the second task on also the bias
    towards new classes (Wu et al. 2019, arXiv 1905.13260):

    prediction_bias        share of predictions minus share of images that are of new classes
    margin_old, margin_new mean over images of old and of new classes of (largest logit of a new
                           class - largest logit of an old class)
    """
    return pandas.DataFrame([_calibration(run, after) for after in run.snapshots.recorded])


def _calibration(run: Run, after: int) -> dict[str, float]:
    snapshot = run.snapshots.after(after)
    seen, recorded = snapshot.seen, snapshot.recorded
    confidence, correct = recorded.confidence[seen], snapshot.correct[seen]
    earlier = {label for classes in run.classes_of_tasks[: after - 1] for label in classes}
    new = numpy.array([label not in earlier for label in range(recorded.num_classes)])
    return {
        "after_task": after,
        "accuracy": float(correct.mean()),
        "confidence": float(confidence.mean()),
        "ece": expected_calibration_error(confidence, correct),
        "brier": float(recorded.brier(snapshot.labels)[seen].mean()),
        **_bias(snapshot, new),
    }


def _bias(snapshot: Snapshot, new: NDArray[numpy.bool_]) -> dict[str, float]:
    """How far new classes are preferred to old ones; NaN without old or without new classes."""
    if new.all() or not new.any():
        return dict.fromkeys(("prediction_bias", "margin_old", "margin_new"), float("nan"))
    known = snapshot.seen & (snapshot.labels < len(new))
    margin, is_new = snapshot.recorded.margin(new)[known], new[snapshot.labels[known]]
    return {
        "prediction_bias": float(new[snapshot.predicted[known]].mean() - is_new.mean()),
        "margin_old": float(margin[~is_new].mean()) if not is_new.all() else float("nan"),
        "margin_new": float(margin[is_new].mean()) if is_new.any() else float("nan"),
    }
