"""Lines that a run prints at its end."""

from __future__ import annotations

import pytest

from smope.console.tables import reference_line

SCORE = "final_average_accuracy"


@pytest.mark.parametrize(
    ("ours", "simple", "words"),
    [
        (0.7, 0.975, "reaches 97.50 %, which is 27.50 points more: these images may suit"),
        (0.9, 0.8, "reaches 80.00 %, 10.00 points less."),
    ],
)
def test_the_line_says_which_is_better(ours: float, simple: float, words: str) -> None:
    assert words in reference_line({SCORE: ours, "reference": {SCORE: simple}})


def test_without_a_reference_there_is_no_line() -> None:
    assert not reference_line({SCORE: 0.7})
    assert not reference_line({SCORE: None, "reference": {SCORE: 0.7}})
