"""Lines that a run prints at its end."""

from __future__ import annotations

import pytest

from smope.console.tables import reference_line

SCORE = "final_average_accuracy"


@pytest.mark.parametrize(
    ("ours", "simple", "words"),
    [
        (0.7, 0.975, "reaches 97.50 %, which is 27.50 points more. These images may suit"),
        (0.9, 0.8, "reaches 80.00 %, 10.00 points less."),
        (0.9, 0.9, "reaches 90.00 % as well."),
    ],
)
def test_the_line_says_which_is_better(ours: float, simple: float, words: str) -> None:
    assert words in reference_line({SCORE: ours, "reference": {SCORE: simple}})


def test_another_method_is_suggested_than_the_one_that_ran() -> None:
    record = {
        SCORE: 0.7,
        "reference": {SCORE: 0.8},
        "config": {"method": {"_target_": "smope.methods.ridge.Ridge"}},
    }
    assert "may suit method=smope_plus or ncm, or longer" in reference_line(record)


def test_few_test_images_are_named() -> None:
    tasks = [{"test": 12}, {"test": 12}]
    for simple in (0.6, 0.8):
        record = {SCORE: 0.7, "reference": {SCORE: simple}, "tasks": tasks}
        assert "; with 24 test images that may be chance." in reference_line(record)
        assert "chance" not in reference_line({**record, "tasks": [{"test": 1000}]})


def test_without_a_reference_there_is_no_line() -> None:
    assert not reference_line({SCORE: 0.7})
    assert not reference_line({SCORE: None, "reference": {SCORE: 0.7}})
