"""The benchmark of growing work: its streams have the sizes asked for, and its fits are right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from scale import RidgeSize, Size, compared, exponent, made_stream, many_classes, ridge_table


def test_the_stream_has_the_size_asked_for() -> None:
    stream = made_stream(Size(classes=6, images=2, tasks=3))
    assert [len(task.classes) for task in stream.tasks] == [2, 2, 2]
    assert [len(task.test) for task in stream.tasks] == [4, 4, 4]


def test_the_exponent_of_a_power_law_comes_out() -> None:
    assert exponent([2, 4, 8], [12.0, 48.0, 192.0]) == pytest.approx(2)
    assert exponent([2, 4, 8], [7.0, 7.0, 7.0]) == pytest.approx(0, abs=1e-9)


def test_both_kinds_are_measured_and_give_the_same_numbers() -> None:
    """`compared` itself asserts that the accuracy matrices are equal."""
    row = compared(Size(classes=4, images=1, tasks=2), rounds=1)
    assert row["features"] == 4 * 128 * 4, "one test image of four classes in float32"
    assert min(row.values()) > 0


def test_a_ridge_classifier_is_measured_with_both_rules() -> None:
    lines = ridge_table(RidgeSize(classes=2, images=8, tasks=1, width=4), rounds=1)
    rows = [line for line in lines if line.endswith("times |")]
    assert len(rows) == 12 and sum(line.startswith("| exponent in") for line in lines) == 4


def test_many_classes_are_one_run() -> None:
    size = Size(classes=8, images=2, tasks=4, tested=1)
    assert [len(task.test) for task in made_stream(size).tasks] == [2, 2, 2, 2]
    lines = many_classes(size)
    assert lines[0].startswith("8 classes in 4 tasks, 2 training images and 1 test image(s)")
    assert "| features of test images | 0.00 MB |" in lines
