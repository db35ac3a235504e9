"""Whether two methods differ by more than chance: over seeds, and over test images.

With n paired seeds the exact permutation test has 2^n sign patterns, so that no p below 2 / 2^n can
come out: three seeds cannot say more than p = 0.25, five 0.0625, six 0.03125. `smallest_p` says so
beside every p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy
import pandas
from scipy.stats import binomtest, bootstrap, permutation_test

from smope.analysis.runs import Run, comparable, scores
from smope.errors import UserError

CONFIDENCE = 0.95
RESAMPLES = 10_000
EXACT_UP_TO = 13  # pairs: 2^13 < RESAMPLES


@dataclass(frozen=True)
class Comparison:
    """Of paired values, first minus second.

    low, high:   95 % interval of the mean difference, percentile bootstrap over pairs (NaN for a
                 single pair).
    p:           two-sided sign-flip permutation test of a mean difference of 0, exact up to 13
                 pairs.
    smallest_p:  the least that this test can give with so many pairs.
    effect_size: Cohen's d_z, mean over standard deviation (ddof 1) of the differences; NaN for one
        pair, infinite
                 where all differences are equal and not 0.
    wins:        share of pairs in which the first is larger, ties counting half.
    left_out:    runs that were not looked at: those with fewer tasks than others of their group,
                 and repeats.
    """

    pairs: int
    difference: float
    low: float
    high: float
    p: float
    smallest_p: float
    effect_size: float
    wins: float
    left_out: int = 0


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare values that belong together in pairs (the same seed); the same numbers in every
    call.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"first ({len(first)}) and second ({len(second)}) must be as many, at least one"
        )
    difference = numpy.asarray(first, float) - numpy.asarray(second, float)
    low, high = _interval(difference)
    return Comparison(
        len(difference),
        float(difference.mean()),
        low,
        high,
        _sign_flip(difference),
        _smallest_p(len(difference)),
        _effect_size(difference),
        float(((difference > 0) + 0.5 * (difference == 0)).mean()),
    )


def _sign_flip(difference: numpy.ndarray) -> float:
    """Two-sided p of the permutation test that exchanges the two values of each pair; 1 for a
    single pair.
    """
    if len(difference) < 2:
        return 1.0
    result = permutation_test(
        (difference,),
        lambda values, axis: values.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT_UP_TO if len(difference) <= EXACT_UP_TO else RESAMPLES,
        rng=numpy.random.default_rng(0),
    )
    return float(result.pvalue)


def _smallest_p(pairs: int) -> float:
    return min(1.0, 2 / 2**pairs) if pairs <= EXACT_UP_TO else 2 / (RESAMPLES + 1)


def _effect_size(difference: numpy.ndarray) -> float:
    if len(difference) < 2:
        return float("nan")
    spread, mean = float(difference.std(ddof=1)), float(difference.mean())
    if spread < 1e-12:
        return float("nan") if abs(mean) < 1e-12 else float(numpy.copysign(numpy.inf, mean))
    return mean / spread


def _interval(difference: numpy.ndarray) -> tuple[float, float]:
    if len(difference) < 2:
        return float("nan"), float("nan")
    if numpy.ptp(difference) < 1e-12:
        return float(difference[0]), float(difference[0])
    result = bootstrap(
        (difference,),
        numpy.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=numpy.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of any false alarm among the tests stays below
    each p.

    p(k) in ascending order becomes max over j <= k of (m - j + 1) p(j), at most 1.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected


def compare_runs(
    first: Sequence[Run], second: Sequence[Run], score: str = "final_average_accuracy"
) -> Comparison:
    """Compare two groups of runs by a column of `scores`, paired by seed; UserError where no seed
    is in both.

    Of each group the runs with the most tasks, one a seed (see `comparable`). A pair has the same
    images, tasks and class order, UserError where none has; and where one group is under way and
    the other is not as far: an average over fewer tasks is another quantity.
    """
    full = [comparable(runs) for runs in (first, second)]
    pairs = _pairs(*full)
    if not pairs:
        has = [f"{runs[0].label} has seeds {sorted(run.seed for run in runs)}" for runs in full]
        raise UserError(
            f"{', '.join(has)}: none in common on the same stream (images, tasks, class order), "
            f"so nothing is paired; "
            "train both with the same seeds on one stream"
        )
    if not _as_far(pairs):
        done = [
            f"{run.label} has finished {run.tasks_done} of {run.num_tasks} tasks"
            for run in pairs[0]
        ]
        raise UserError(
            f"{', '.join(done)}: these are not comparable; finish the runs, or leave them out"
        )
    return _compared(pairs, score, len(first) + len(second) - sum(map(len, full)))


def _pairs(first: Sequence[Run], second: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of the same seed on the same stream, by seed."""
    mates = {(run.seed, run.stream): run for run in second}
    found = [(run, mates[run.seed, run.stream]) for run in first if (run.seed, run.stream) in mates]
    return sorted(found, key=lambda pair: pair[0].seed)


def _as_far(pairs: Sequence[tuple[Run, Run]]) -> bool:
    return all(left.tasks_done == right.tasks_done for left, right in pairs)


def _compared(pairs: Sequence[tuple[Run, Run]], score: str, left_out: int) -> Comparison:
    left, right = (scores(runs)[score].tolist() for runs in zip(*pairs, strict=True))
    return replace(compare(left, right), left_out=left_out)


def compare_all(runs: Sequence[Run], score: str = "final_average_accuracy") -> pandas.DataFrame:
    """Every two labels that share seeds on one stream: columns first (of the larger mean), second,
    those of Comparison.

    p_holm is p after Holm's correction for all rows of the frame.

    Labels of which one is under way and the other is further are not paired (see `compare_runs`).
    """
    full = comparable(runs)
    frame: Any = scores(full)
    means = frame.groupby("label")[score].mean().sort_values(ascending=False)
    rows = []
    for first, second in combinations(means.index, 2):
        counted = [[run for run in full if run.label == label] for label in (first, second)]
        pairs = _pairs(*counted)
        if pairs and _as_far(pairs):
            left_out = sum(run.label in (first, second) for run in runs) - sum(map(len, counted))
            rows.append(
                {"first": first, "second": second, **vars(_compared(pairs, score, left_out))}
            )
    corrected = holm([row["p"] for row in rows])
    return pandas.DataFrame([{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)])


def compare_images(first: Run, second: Run) -> dict[str, float]:
    """Two runs on the same test images after their last task: is the difference in accuracy more
    than chance of images?

    difference (first minus second) with its 95 % interval (paired bootstrap over images),
    only_first and only_second (images that only one has right), p of McNemar's exact test on these.
    Says nothing about other seeds. UserError where the runs were not evaluated on the same images.
    """
    if first.stream != second.stream:
        raise UserError(
            f"{first.path} and {second.path}: were evaluated on other images or class orders; "
            f"compare runs of one seed"
        )
    left, right = first.evidence.last, second.evidence.last
    if left.tasks_done != right.tasks_done:
        raise UserError(
            f"{first.path} and {second.path}: have finished different numbers of tasks; finish both"
        )
    difference = left.correct[left.seen].astype(float) - right.correct[right.seen].astype(float)
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    low, high = _image_interval(only_first, only_second, len(difference))
    undecided = only_first + only_second == 0
    p = 1.0 if undecided else float(binomtest(only_first, only_first + only_second).pvalue)
    mean = float(difference.mean())
    return {
        "difference": mean,
        "low": low,
        "high": high,
        "only_first": only_first,
        "only_second": only_second,
        "p": p,
    }


def _image_interval(only_first: int, only_second: int, images: int) -> tuple[float, float]:
    """Resampling images with values +1, 0, -1 is a multinomial draw of how many there are of each."""
    draw = numpy.random.default_rng(0)
    share = numpy.array([only_first, only_second, images - only_first - only_second]) / images
    counts = draw.multinomial(images, share, RESAMPLES)
    low, high = numpy.percentile((counts[:, 0] - counts[:, 1]) / images, [2.5, 97.5])
    return float(low), float(high)
