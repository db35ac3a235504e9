"""Telling images of classes that come later from images of known classes.

The images of later tasks serve as an open-set test. This needs runs with trainer.record=all.
"""

from __future__ import annotations

import numpy
import pandas
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from smope.analysis.run import Run
from smope.errors import UserError


def auroc(known: NDArray, unknown: NDArray) -> float:
    """Probability that a known image scores higher than an unknown one, ties counting half.

    Args:
        known: Scores of images of known classes.
        unknown: Scores of images of unknown classes.

    Returns:
        1 is perfect, 0.5 is chance.
    """
    return float(
        roc_auc_score([1] * len(known) + [0] * len(unknown), numpy.concatenate([known, unknown]))
    )


def fpr95(known: NDArray, unknown: NDArray) -> float:
    """Share of unknown images above the threshold that 95 % of the known ones reach.

    The threshold is the highest at which at least 95 % of known images score as much or more.

    Args:
        known: Scores of images of known classes.
        unknown: Scores of images of unknown classes.

    Returns:
        0 is perfect.
    """
    ordered = numpy.sort(known)[::-1]
    threshold = ordered[int(numpy.ceil(0.95 * len(ordered) - 1e-9)) - 1]
    return float((numpy.asarray(unknown) >= threshold).mean())


def open_set_scores(run: Run) -> pandas.DataFrame:
    """A row after each task but the last; unknown are images whose class comes in a later task.

    after_task     number of finished tasks
    known, unknown numbers of images
    probability_*  AUROC and FPR95 of the largest softmax probability (Hendrycks and Gimpel 2017,
                   arXiv 1610.02136)
    logit_*        the same of the largest logit (Hendrycks et al. 2022, arXiv 1911.11132)
    """
    rows = []
    for after in (after for after in run.snapshots.recorded if after < run.num_tasks):
        snapshot = run.snapshots.after(after)
        classes = snapshot.recorded.num_classes
        unknown = ~snapshot.seen & (snapshot.labels >= classes)
        known = snapshot.seen & (snapshot.labels < classes)
        if not unknown.any():
            continue
        row: dict[str, float] = {
            "after_task": after,
            "known": int(known.sum()),
            "unknown": int(unknown.sum()),
        }
        recorded = snapshot.recorded
        for name, best in (("probability", recorded.confidence), ("logit", recorded.largest)):
            row |= {
                f"{name}_auroc": auroc(best[known], best[unknown]),
                f"{name}_fpr95": fpr95(best[known], best[unknown]),
            }
        rows.append(row)
    if not rows:
        raise UserError(
            f"{run.path}: no images of classes to come were evaluated; train it again with "
            f"trainer.record=all, on a stream whose tasks bring new classes"
        )
    return pandas.DataFrame(rows)
