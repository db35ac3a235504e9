"""Use of experts, by hand: two heads of three experts, of which an image chooses one."""

from __future__ import annotations

import math

import numpy
import pytest

from smope.metrics.expert_use import (
    collapse_sentence,
    effective_experts,
    max_violation,
    overlap,
    summarise_use,
    tracked_use,
    unused_share,
)

EVEN, ONE, SKEWED = [2, 2, 2], [6, 0, 0], [4, 2, 0]


def test_effective_experts() -> None:
    skewed = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    values = effective_experts(numpy.array([EVEN, ONE, SKEWED]))
    assert values.tolist() == pytest.approx([3.0, 1.0, skewed])


def test_unused_share_and_largest_violation() -> None:
    counts = numpy.array([EVEN, ONE, SKEWED])
    assert unused_share(counts).tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert max_violation(counts).tolist() == pytest.approx([0, 2, 1])


def test_overlap() -> None:
    # shares (1/3, 1/3, 1/3), (1, 0, 0) and (2/3, 1/3, 0)
    table = overlap(numpy.array([EVEN, ONE, SKEWED]))
    rows = [[1, 1 / 3, 2 / 3], [1 / 3, 1, 2 / 3], [2 / 3, 2 / 3, 1]]
    assert table.tolist() == [pytest.approx(row) for row in rows]


def test_summary_is_over_all_images_and_means_over_heads() -> None:
    first, second = [[4, 2, 0], [6, 0, 0]], [[0, 2, 4], [6, 0, 0]]  # (H, E) of two tasks
    summary = summarise_use(numpy.array([[first], [second]]), 1, [0.25])
    total = numpy.array([[4, 4, 4], [12, 0, 0]])
    assert summary == {
        "after_task": 2,
        "chosen": 1,
        "experts": 3,
        "effective": [pytest.approx(effective_experts(total).mean())],
        "dead": [pytest.approx(1 / 3)],
        "max_violation": [pytest.approx(1.0)],
        "margin": [0.25],
        "overlap": [pytest.approx((1 / 3 + 1) / 2)],
    }
    assert tracked_use(summary) == {
        "effective": pytest.approx(2.0),
        "dead": pytest.approx(1 / 3),
        "max_violation": pytest.approx(1.0),
        "margin": 0.25,
        "overlap": pytest.approx(2 / 3),
        "effective_block_1": pytest.approx(2.0),
    }


def test_one_task_overlaps_with_none() -> None:
    summary = summarise_use(numpy.array([[[EVEN]]]), 1, [0.5])
    assert summary["overlap"] is None
    assert "overlap" not in tracked_use(summary)


@pytest.mark.parametrize(
    ("effective", "blocks", "words"),
    [
        ([5.0, 5.2, 9.0], [0, 1, 2], "5.1 of 25 experts do the work in blocks 0-1 (each image"),
        ([5.0, 9.0, 5.2], [0, 3, 5], "5.1 of 25 experts do the work in blocks 0, 5 (each image"),
        ([9.0, 6.9], [2, 4], "6.9 of 25 experts do the work in block 4 (each image chooses 5)"),
    ],
)
def test_a_collapse_is_named(effective: list[float], blocks: list[int], words: str) -> None:
    sentence = collapse_sentence({"effective": effective, "chosen": 5, "experts": 25}, blocks)
    assert sentence is not None
    assert words in sentence


def test_an_even_mixture_has_not_collapsed() -> None:
    use = {"effective": [7.1, 25.0], "chosen": 5, "experts": 25}
    assert collapse_sentence(use, [0, 1]) is None
