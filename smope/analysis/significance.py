"""Whether two methods differ by more than chance: over seeds, and over test images.

Seeds are paired: a difference is taken between runs of one seed, which share class order and
batches. With n pairs the exact permutation test has 2^n sign patterns, so its p cannot be below
2 / 2^n: three seeds cannot give less than p = 0.25, five 0.0625, six 0.03125. `smallest_p` says so
beside every p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING

import numpy
from scipy.stats import binomtest, bootstrap, permutation_test

from smope.analysis.intervals import CONFIDENCE, student_interval
from smope.analysis.labels import comparable
from smope.analysis.run import Run
from smope.analysis.tables import MAIN_SCORE, UPPER_BOUNDS, ResultRow, ResultTable, score_column
from smope.config.value_types import shown
from smope.errors import UserError

if TYPE_CHECKING:
    import pandas

RESAMPLES = 10_000
MAX_EXACT_PAIRS = 13  # 2^13 < RESAMPLES
FEW_SEEDS = 2  # Student's t is 12.7 with one degree of freedom, 4.3 with two
SAME_DIFFERENCE = 1e-12  # differences that are closer than this are equal


@dataclass(frozen=True)
class PairedComparison:
    """Of paired values, first minus second.

    low, high:   95 % interval of the mean difference, percentile bootstrap over pairs; NaN for a
                 single pair.
    p:           two-sided sign-flip permutation test of a mean difference of 0, exact up to 13
                 pairs.
    smallest_p:  the smallest p that this test can give with so many pairs.
    effect_size: Cohen's d_z, mean over standard deviation (ddof 1) of the differences; NaN for one
                 pair, infinite if all differences are equal and not 0.
    wins:        share of pairs in which the first is larger, ties counting half.
    left_out:    number of runs that were not compared because others of their group have finished
                 more tasks.
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


def compare(first: Sequence[float], second: Sequence[float]) -> PairedComparison:
    """Compare values that belong together in pairs; random draws are the same in every call.

    Args:
        first: A value for each pair, such as the score of a seed.
        second: The other value of each pair, in the same order.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"first ({len(first)}) and second ({len(second)}) must be as many, at least one"
        )
    difference = numpy.asarray(first, float) - numpy.asarray(second, float)
    low, high = _bootstrap_interval(difference)
    return PairedComparison(
        pairs=len(difference),
        difference=float(difference.mean()),
        low=low,
        high=high,
        p=_sign_flip_p(difference),
        smallest_p=_smallest_p(len(difference)),
        effect_size=_effect_size(difference),
        wins=float(((difference > 0) + 0.5 * (difference == 0)).mean()),
    )


def _sign_flip_p(difference: numpy.ndarray) -> float:
    """Two-sided p of the test that exchanges the values of each pair; 1 for a single pair."""
    if len(difference) < 2:
        return 1.0
    exact = len(difference) <= MAX_EXACT_PAIRS
    result = permutation_test(
        (difference,),
        lambda values, axis: values.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**MAX_EXACT_PAIRS if exact else RESAMPLES,
        rng=numpy.random.default_rng(0),
    )
    return float(result.pvalue)


def _smallest_p(pairs: int) -> float:
    return min(1.0, 2 / 2**pairs) if pairs <= MAX_EXACT_PAIRS else 2 / (RESAMPLES + 1)


def _effect_size(difference: numpy.ndarray) -> float:
    if len(difference) < 2:
        return float("nan")
    spread, mean = float(difference.std(ddof=1)), float(difference.mean())
    if spread >= SAME_DIFFERENCE:
        return mean / spread
    return float("nan") if abs(mean) < SAME_DIFFERENCE else float(numpy.copysign(numpy.inf, mean))


def _bootstrap_interval(difference: numpy.ndarray) -> tuple[float, float]:
    if len(difference) < 2:
        return float("nan"), float("nan")
    if numpy.ptp(difference) < SAME_DIFFERENCE:
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
    """Holm's step-down correction (1979), in the order of `p_values`.

    The chance of any false alarm among the tests stays below each corrected p. In ascending order
    p(k) becomes the maximum over j <= k of (m - j + 1) p(j), at most 1.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected


@dataclass(frozen=True)
class ComparedRow:
    """A row of a result table beside the reference; values in percent.

    low, high: 95 % interval of the row's own mean (Student's t over seeds, ddof 1), cut to 0..100;
               None for a single seed.
    seeds:     how many seeds the interval is over.
    against:   row minus reference over the seeds of both; None for the reference, and if the two
               share fewer than two seeds.
    holm:      p of `against`, corrected by Holm for the tests of this table.
    """

    row: ResultRow
    low: float | None
    high: float | None
    seeds: int
    against: PairedComparison | None = None
    holm: float | None = None


@dataclass(frozen=True)
class TableComparison:
    """A table's rows against one of them.

    reference:     that row; None if the table does not have it.
    named_by_user: whether the user chose the reference; otherwise it is the best row.
    """

    reference: ResultRow | None
    rows: Sequence[ComparedRow]
    named_by_user: bool

    @property
    def _comparisons(self) -> list[PairedComparison]:
        return [row.against for row in self.rows if row.against is not None]

    @property
    def tests(self) -> int:
        return len(self._comparisons)

    @property
    def smallest_p(self) -> float:
        """The smallest p that any of the tests can give."""
        return min(comparison.smallest_p for comparison in self._comparisons)

    @property
    def has_few_seeds(self) -> bool:
        """Whether some interval is over so few seeds that it says next to nothing."""
        return any(row.seeds == FEW_SEEDS for row in self.rows)

    @property
    def most_pairs(self) -> int:
        return max(comparison.pairs for comparison in self._comparisons)


def compare_rows(table: ResultTable, against: str | None = None) -> TableComparison | None:
    """Every row's interval of the final average accuracy, and its test against a reference.

    Args:
        table: The table.
        against: Label or method of the reference row. None takes the best row, but no upper bound
            such as joint training.

    Returns:
        None if no row has two seeds.
    """
    column = score_column(MAIN_SCORE)
    values = {row.label: row.values(column) for row in table.rows}
    if all(len(by_seed) < 2 for by_seed in values.values()):
        return None
    reference = _reference(table, against)
    reference_values = values[reference.label] if reference is not None else {}
    tests: dict[str, PairedComparison] = {}
    for row in table.rows:
        seeds = sorted(reference_values.keys() & values[row.label].keys())
        if row is not reference and len(seeds) > 1:
            row_values = [values[row.label][seed] for seed in seeds]
            tests[row.label] = compare(row_values, [reference_values[seed] for seed in seeds])
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    rows = [
        ComparedRow(
            row,
            *(student_interval(list(values[row.label].values()), 100.0) or (None, None)),
            len(values[row.label]),
            tests.get(row.label),
            corrected.get(row.label),
        )
        for row in table.rows
    ]
    return TableComparison(reference, rows, named_by_user=against is not None)


def _reference(table: ResultTable, against: str | None) -> ResultRow | None:
    if against is None:
        return next((row for row in table.rows if row.method not in UPPER_BOUNDS), None)
    rows = table.rows_named(against)
    if len(rows) > 1:
        raise UserError(
            f"--against {shown(against)}: {len(rows)} rows have this method; write one of "
            f"{', '.join(shown(row.label) for row in rows)}"
        )
    return rows[0] if rows else None


def compare_runs(
    first: Sequence[Run], second: Sequence[Run], score: str = MAIN_SCORE
) -> PairedComparison:
    """Compare two configurations by a score, paired by seed.

    Args:
        first: Runs of one configuration; only those with the most tasks count.
        second: Runs of the other one.
        score: A name of `metrics.scores.SCORES`.

    Raises:
        UserError: If no seed is in both on the same images, tasks and class order, or one group
            has finished more tasks than the other, whose average is over an easier problem.
    """
    counted = [comparable(runs) for runs in (first, second)]
    pairs = _pairs(*counted)
    if not pairs:
        seeds = [
            f"{runs[0].label} has seeds {sorted(run.seed for run in runs)}" for runs in counted
        ]
        raise UserError(
            f"{', '.join(seeds)}: none in common on the same stream (images, tasks, class order), "
            f"so nothing is paired; train both with the same seeds on one stream"
        )
    if not _have_equal_tasks(pairs):
        done = [
            f"{run.label} has finished {run.tasks_done} of {run.num_tasks} tasks"
            for run in pairs[0]
        ]
        raise UserError(
            f"{', '.join(done)}: these are not comparable; finish the runs, or leave them out"
        )
    left_out = len(first) + len(second) - sum(map(len, counted))
    return replace(_compare_pairs(pairs, score), left_out=left_out)


def _pairs(first: Sequence[Run], second: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of the same seed on the same stream, by seed."""
    partners = {(run.seed, run.stream): run for run in second}
    pairs = [
        (run, partners[run.seed, run.stream]) for run in first if (run.seed, run.stream) in partners
    ]
    return sorted(pairs, key=lambda pair: pair[0].seed)


def _have_equal_tasks(pairs: Sequence[tuple[Run, Run]]) -> bool:
    return all(first.tasks_done == second.tasks_done for first, second in pairs)


def _compare_pairs(pairs: Sequence[tuple[Run, Run]], score: str) -> PairedComparison:
    first, second = ([_score(run, score) for run in runs] for runs in zip(*pairs, strict=True))
    return compare(first, second)


def _score(run: Run, name: str) -> float:
    value = run.scores[name]
    if value is None:
        raise UserError(f"{run.path}: has no {name}; compare by another score")
    return value


def compare_all(runs: Sequence[Run], score: str = MAIN_SCORE) -> pandas.DataFrame:
    """Compare every two labels that share seeds on one stream.

    Args:
        runs: Labelled runs, as `load_runs` gives them.
        score: A name of `metrics.scores.SCORES`.

    Returns:
        Columns first (the label with the larger mean), second, the fields of PairedComparison, and
        p_holm, which is p corrected for all rows. Two labels that have finished different numbers
        of tasks have no row.
    """
    import pandas

    counted: dict[str, list[Run]] = {}
    for run in comparable(runs):
        counted.setdefault(run.label, []).append(run)
    means = {
        label: fmean(_score(run, score) for run in members) for label, members in counted.items()
    }
    best_first = sorted(counted, key=lambda label: -means[label])
    rows = []
    for first, second in combinations(best_first, 2):
        pairs = _pairs(counted[first], counted[second])
        if not pairs or not _have_equal_tasks(pairs):
            continue
        members = sum(run.label in (first, second) for run in runs)
        left_out = members - len(counted[first]) - len(counted[second])
        comparison = replace(_compare_pairs(pairs, score), left_out=left_out)
        rows.append({"first": first, "second": second, **vars(comparison)})
    corrected = holm([row["p"] for row in rows])
    fields_of_pair = [field.name for field in fields(PairedComparison)]
    return pandas.DataFrame(
        [{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)],
        columns=["first", "second", *fields_of_pair, "p_holm"],
    )


def compare_images(first: Run, second: Run) -> dict[str, float]:
    """Is the difference in accuracy of two runs after their last task more than chance of images?

    This says nothing about other seeds.

    Args:
        first: A run that recorded its evaluations (trainer.record).
        second: Another one on the same images in the same order.

    Returns:
        difference (first minus second) with its 95 % interval low to high (paired bootstrap over
        images), only_first and only_second (images that only one has right), and p of McNemar's
        exact test on these.

    Raises:
        UserError: If the runs were not evaluated on the same images.
    """
    if first.stream != second.stream:
        raise UserError(
            f"{first.path} and {second.path}: were evaluated on other images or class orders; "
            f"compare runs of one seed"
        )
    ours, theirs = first.snapshots.last, second.snapshots.last
    if ours.tasks_done != theirs.tasks_done:
        raise UserError(
            f"{first.path} and {second.path}: have finished different numbers of tasks; finish both"
        )
    difference = ours.correct[ours.seen].astype(float) - theirs.correct[theirs.seen].astype(float)
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    low, high = _image_interval(only_first, only_second, len(difference))
    p = 1.0
    if only_first + only_second > 0:
        p = float(binomtest(only_first, only_first + only_second).pvalue)
    return {
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "only_first": only_first,
        "only_second": only_second,
        "p": p,
    }


def _image_interval(only_first: int, only_second: int, images: int) -> tuple[float, float]:
    """Percentile bootstrap over images.

    Resampling images with the values +1, 0 and -1 is a multinomial draw of how many have each.
    """
    generator = numpy.random.default_rng(0)
    share = numpy.array([only_first, only_second, images - only_first - only_second]) / images
    counts = generator.multinomial(images, share, RESAMPLES)
    low, high = numpy.percentile((counts[:, 0] - counts[:, 1]) / images, [2.5, 97.5])
    return float(low), float(high)
