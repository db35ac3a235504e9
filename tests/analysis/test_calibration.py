"""Calibration, bias towards new classes, and the detection of unknown ones, by hand and against
scikit-learn.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest
from sklearn.metrics import brier_score_loss

from smope.analysis import calibration_scores, load_runs, open_set_scores
from smope.analysis.calibration import expected_calibration_error, reliability
from smope.analysis.open_set import auroc, fpr95
from smope.analysis.recorded_logits import AllLogits
from smope.errors import UserError
from tests.analysis.made_runs import LABELS, logits_for, usual_run, usual_snapshots, write_run


def test_calibration_error_by_hand() -> None:
    confidence = numpy.array([0.9, 0.95, 0.3, 0.25])
    correct = numpy.array([True, False, True, False])
    # two bins: |0.5 - 0.925| and |0.5 - 0.275|, half of the images each
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(
        0.5 * 0.425 + 0.5 * 0.225
    )
    table = reliability(confidence, correct, bins=2)
    assert table["images"].tolist() == [2, 2]
    assert table["confidence"].tolist() == pytest.approx([0.275, 0.925])


def test_bin_edges_belong_to_the_bin_below() -> None:
    table = reliability(numpy.array([0.0, 0.5, 1.0]), numpy.array([1, 1, 1]), bins=2)
    assert table["images"].tolist() == [2, 1]


def test_perfect_calibration() -> None:
    confidence = numpy.repeat(0.75, 8)
    assert expected_calibration_error(
        confidence, numpy.array([True] * 6 + [False] * 2)
    ) == pytest.approx(0.0)


def brier(probabilities: list[list[float]], labels: list[int]) -> float:
    with numpy.errstate(divide="ignore"):
        logits = numpy.log(numpy.array(probabilities, numpy.float32))
    return AllLogits(logits).brier(numpy.array(labels)).mean()


def test_brier_by_hand_and_by_scikit_learn() -> None:
    by_hand = (0.3**2 + 0.2**2 + 0.1**2 + 0.1**2 + 0.9**2 + 0.8**2) / 2
    assert brier([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [0, 1]) == pytest.approx(by_hand)
    binary = [[0.3, 0.7], [0.6, 0.4]]
    twice = 2 * brier_score_loss([1, 0], numpy.array(binary)[:, 1])
    assert brier(binary, [1, 0]) == pytest.approx(twice)
    assert brier([[1.0, 0.0]], [1]) == 2
    assert brier([[1.0, 0.0]], [5]) == 1, "a class that is no column"


def test_calibration_of_a_run(tmp_path: Path) -> None:
    first, second = calibration_scores(usual_run(tmp_path / "run")).to_dict("records")
    confidence = math.exp(2) / (math.exp(2) + 3)
    assert first["ece"] == pytest.approx(1 - math.exp(2) / (math.exp(2) + 1))
    assert math.isnan(first["prediction_bias"])
    assert second["confidence"] == pytest.approx(confidence)
    assert second["ece"] == pytest.approx(0.75 - confidence)
    # five of eight predictions are of classes 2 and 3, four of eight images
    assert second["prediction_bias"] == pytest.approx(1 / 8)
    # old images: three times 0 - 2, once 2 - 0; new images: 2 - 0
    assert second["margin_old"] == pytest.approx(-1.0)
    assert second["margin_new"] == pytest.approx(2.0)


def test_areas_and_rates_by_hand() -> None:
    known, unknown = numpy.array([0.9, 0.8, 0.4]), numpy.array([0.5, 0.4])
    # of six pairs: 2 + 2 won, 0.4 against 0.5 lost, 0.4 against 0.4 half
    assert auroc(known, unknown) == pytest.approx(4.5 / 6)
    assert fpr95(known, unknown) == 1.0
    assert fpr95(numpy.array([0.9, 0.8]), unknown) == 0.0
    twenty = numpy.arange(1, 21) / 20  # 19 of 20 are 95 %: the threshold is 0.1
    assert fpr95(twenty, numpy.array([0.05, 0.09, 0.1, 0.5])) == 0.5


def test_open_set_of_a_run(tmp_path: Path) -> None:
    snapshots = usual_snapshots()
    predicted = [0, 0, 1, 1, 0, 0, 0, 0]
    logits = logits_for(predicted, 2)
    logits[4:] *= 0.5  # images of unknown classes are less sure
    logits[3] *= 0.25  # and one known image less than they
    snapshots[1] = {"logits": logits, "predicted": numpy.array(predicted, numpy.uint16)}
    (run,) = load_runs(write_run(tmp_path / "run", snapshots=snapshots))
    (row,) = open_set_scores(run).to_dict("records")
    assert (row["after_task"], row["known"], row["unknown"]) == (1, 4, 4)
    assert row["probability_auroc"] == row["logit_auroc"] == 12 / 16
    assert row["probability_fpr95"] == row["logit_fpr95"] == 1.0
    assert len(LABELS) == 8


def test_open_set_needs_images_of_tasks_to_come(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.record=all"):
        open_set_scores(usual_run(tmp_path / "run"))
