"""What a comparison of a few seeds, or of images, can say."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy
import pytest
from scipy.stats import ttest_rel

from smope.analysis import compare, compare_all, compare_images, compare_runs, load_runs
from smope.errors import UserError
from tests.analysis.made_runs import LABELS, logits_for, usual_run, usual_snapshots, write_run

FIRST, SECOND = [0.9, 0.8, 0.85, 0.95], [0.7, 0.75, 0.86, 0.8]


def test_by_hand() -> None:
    found = compare(FIRST, SECOND)
    difference = numpy.array(FIRST) - numpy.array(SECOND)
    assert found.pairs == 4
    assert found.difference == pytest.approx(0.0975)
    assert found.effect_size == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert found.effect_size == pytest.approx(ttest_rel(FIRST, SECOND).statistic / 2), (
        "t over the root of n"
    )
    assert found.wins == 0.75
    means = [numpy.mean(difference * signs) for signs in product((1, -1), repeat=4)]
    above = sum(mean >= difference.mean() - 1e-12 for mean in means)
    assert found.p == pytest.approx(min(1, 2 * above / 16))
    assert found.smallest_p == 2 / 16
    many = compare([1.0] * 20, [0.5] * 20)
    assert many.p == many.smallest_p == 2 / 10_001, "of 10,000 patterns that are drawn"
    assert (found.low, found.high) == pytest.approx(_every_bootstrap(difference), abs=0.01)


def _every_bootstrap(difference: numpy.ndarray) -> list[float]:
    """The percentiles of the means of all n^n resamplings, which the drawn ones approach."""
    means = [numpy.mean(drawn) for drawn in product(difference, repeat=len(difference))]
    return list(numpy.percentile(means, [2.5, 97.5]))


def test_it_is_symmetric_and_repeats() -> None:
    one, other = compare(FIRST, SECOND), compare(SECOND, FIRST)
    assert other.difference == -one.difference
    assert other.p == pytest.approx(one.p)
    assert (one.low, one.high) == (compare(FIRST, SECOND).low, compare(FIRST, SECOND).high)


def test_three_seeds_cannot_say_more_than_a_quarter() -> None:
    found = compare([0.9, 0.8, 0.7], [0.1, 0.2, 0.3])
    assert found.p == found.smallest_p == 0.25


def test_one_pair_and_equal_pairs() -> None:
    single = compare([0.9], [0.8])
    assert (
        single.p,
        single.smallest_p,
        math.isnan(single.low),
        math.isnan(single.effect_size),
    ) == (1, 1, True, True)
    shifted = compare([0.9, 0.8], [0.8, 0.7])
    assert shifted.effect_size == math.inf
    assert shifted.low == shifted.high == pytest.approx(0.1)
    same = compare([0.9, 0.8], [0.9, 0.8])
    assert (same.difference, same.p, same.wins) == (0, 1, 0.5)
    with pytest.raises(ValueError, match="must be as many, at least one"):
        compare([0.9], [])


def with_final(path: Path, final: float, **changes: object) -> None:
    write_run(path, accuracy_matrix=[[1.0, None], [final, 1.0]], **changes)


def test_runs_are_paired_by_seed(tmp_path: Path) -> None:
    for seed, (ours, theirs) in enumerate([(0.8, 0.6), (0.6, 0.6), (0.9, 0.5)]):
        with_final(tmp_path / f"a{seed}", ours, seed=seed)
        with_final(tmp_path / f"b{seed}", theirs, seed=seed, method="ncm")
    with_final(tmp_path / "a9", 0.0, seed=9)  # of no other method: left out
    runs = load_runs(tmp_path)
    ours, theirs = ([run for run in runs if run.method == method] for method in ("smope", "ncm"))
    assert compare_runs(ours, theirs).difference == pytest.approx((0.1 + 0 + 0.2) / 3)
    (row,) = compare_all(runs).to_dict("records")
    assert {row["first"], row["second"]} == {"smope", "ncm"}
    assert row["pairs"] == 3
    with pytest.raises(UserError, match="none in common"):
        compare_runs(ours[-1:], theirs)


def test_runs_on_different_streams_are_not_paired(tmp_path: Path) -> None:
    """Seed 1 of the second has another class order than the first's; the third has other tasks in
    every seed.
    """
    for seed in (0, 1):
        stream = {"name": "made", "content_hash": "c", "identity": f"i{seed}"}
        with_final(tmp_path / f"a{seed}", 0.8, seed=seed, stream=stream)
        with_final(
            tmp_path / f"b{seed}",
            0.7 - seed / 2,
            seed=seed,
            method="ncm",
            stream={**stream, "identity": "i0"},
        )
        with_final(
            tmp_path / f"c{seed}",
            0.1,
            seed=seed,
            method="slda",
            stream={**stream, "identity": "other"},
        )
    runs = load_runs(tmp_path)
    ours, theirs, others = (
        [run for run in runs if run.method == method] for method in ("smope", "ncm", "slda")
    )
    found = compare_runs(ours, theirs)
    assert (found.pairs, found.difference) == (1, pytest.approx(0.05))
    with pytest.raises(UserError, match="none in common on the same stream"):
        compare_runs(ours, others)
    (row,) = compare_all(runs).to_dict("records")
    assert (row["first"], row["second"], row["pairs"]) == ("smope", "ncm", 1)


def test_all_pairs_are_corrected_for_their_number(tmp_path: Path) -> None:
    """Six seeds: the first beats the second by 0.1 and the third by 0.2 in each, all as far as
    they can be told.
    """
    for seed in range(6):
        for number, method in enumerate(("smope", "ncm", "slda")):
            with_final(tmp_path / f"{method}{seed}", 0.9 - number / 10, seed=seed, method=method)
    with_final(tmp_path / "l2p0", 0.1, seed=0, method="l2p")  # a single pair with each: p is 1
    frame = compare_all(load_runs(tmp_path))
    assert sorted(frame["p"]) == pytest.approx([2 / 64] * 3 + [1] * 3)
    assert sorted(frame["p_holm"]) == pytest.approx([6 * 2 / 64] * 3 + [1] * 3)


def test_runs_under_way_are_not_paired(tmp_path: Path) -> None:
    under_way = {"status": "running", "accuracy_matrix": [[1.0, None], [None, None]]}
    for seed in (0, 1):
        with_final(tmp_path / f"a{seed}", 0.8, seed=seed)
        with_final(tmp_path / f"b{seed}", 0.6, seed=seed, method="ncm")
        write_run(tmp_path / f"c{seed}", seed=seed, method="slda", **under_way)
    with_final(tmp_path / "a2", 0.8, seed=2)
    write_run(tmp_path / "b2", seed=2, method="ncm", **under_way)
    runs = load_runs(tmp_path)
    ours, theirs, early = (
        [run for run in runs if run.method == method] for method in ("smope", "ncm", "slda")
    )
    found = compare_runs(ours, theirs)
    assert (found.pairs, found.left_out) == (2, 1)
    assert found.difference == pytest.approx(0.1)
    with pytest.raises(UserError, match="slda has finished 1 of 2 tasks: these are not comparable"):
        compare_runs(ours, early)
    (row,) = compare_all(runs).to_dict("records")
    assert (row["first"], row["second"], row["pairs"], row["left_out"]) == ("smope", "ncm", 2, 1)


def test_images_are_paired(tmp_path: Path) -> None:
    """Eight images: the usual run has two wrong, the other has these two right and another two
    wrong.
    """
    snapshots = usual_snapshots()
    predicted = [0, 0, 1, 1, 0, 0, 3, 3]
    snapshots[2] = {
        "logits": logits_for(predicted, 4),
        "predicted": numpy.array(predicted, numpy.uint16),
    }
    (other,) = load_runs(write_run(tmp_path / "other", snapshots=snapshots))
    usual = usual_run(tmp_path / "usual")
    found = compare_images(usual, other)
    assert (found["difference"], found["only_first"], found["only_second"], found["p"]) == (
        0,
        2,
        2,
        1,
    )
    assert found["low"] == -found["high"] < 0
    assert compare_images(usual, usual)["p"] == 1
    for path, row in (("better", LABELS), ("worse", [1, 1, 0, 0, 3, 2, 3, 3])):
        snapshots[2] = {"logits": logits_for(row, 4), "predicted": numpy.array(row, numpy.uint16)}
        write_run(
            tmp_path / path, snapshots=snapshots, accuracy_matrix=[[1.0, None], [row[0] == 0, 1.0]]
        )
    found = compare_images(load_runs(tmp_path / "better")[0], load_runs(tmp_path / "worse")[0])
    assert (found["difference"], found["only_first"], found["only_second"]) == (5 / 8, 5, 0)
    assert found["p"] == pytest.approx(2 / 2**5), "five coins that all fall on one side"
    # of a binomial of 8 draws and chance 5/8, 0.6 % are below 2 and 3.6 % below 3; 2.3 % are above
    # 7
    assert (found["low"], found["high"]) == (2 / 8, 7 / 8)
    stream = {"name": "made", "content_hash": "c", "identity": "another"}
    with pytest.raises(UserError, match="other images or class orders"):
        compare_images(usual, usual_run(tmp_path / "elsewhere", stream=stream))
