"""The contract of every score, and that one entry is enough to add a score."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from pathlib import Path

import pytest

from smope.analysis import load_runs, scores
from smope.cli.main import main
from smope.console.tables import score_lines
from smope.metrics.scores import SCORES, Score, all_scores, recorded_scores
from smope.training.history import History
from tests.analysis.made_runs import write_run

# Two tasks of 3 and 1 images; the first loses half, the second is learned to 80 %.
MATRIX = [[1.0], [0.5, 0.8]]
IMAGES = [3, 1]
BY_HAND = {
    "final_average_accuracy": (0.5 + 0.8) / 2,
    "cumulative_average_accuracy": (1.0 + 0.65) / 2,
    "average_incremental_accuracy": (1.0 + (3 * 0.5 + 0.8) / 4) / 2,
    "forgetting": 0.5,
    "backward_transfer": -0.5,
    "learning_accuracy": (1.0 + 0.8) / 2,
    "sample_weighted_accuracy": (3 * 0.5 + 0.8) / 4,
}


def random_matrix(tasks: int) -> list[list[float]]:
    draw = random.Random(tasks)
    return [[draw.random() for _ in range(row + 1)] for row in range(tasks)]


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_described(name: str) -> None:
    score = SCORES[name]
    assert re.fullmatch(r"[a-z_]+", name), "a key of run.json"
    assert score.title and score.short
    assert len(score.definition.split()) > 5 and not score.definition.endswith(".")
    assert score.better in ("high", "low")
    assert len(score.title) <= 34, "the column of the terminal"


def test_headings_are_unique() -> None:
    assert len({score.short for score in SCORES.values()}) == len(SCORES)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_every_score_is_a_number_and_changes_nothing(name: str, tasks: int) -> None:
    matrix, images = random_matrix(tasks), [1 + task for task in range(tasks)]
    before = copy.deepcopy((matrix, images))
    assert math.isfinite(SCORES[name].function(matrix, images))
    assert (matrix, images) == before


@pytest.mark.parametrize("name", SCORES)
def test_every_score_by_hand(name: str) -> None:
    assert SCORES[name].function(MATRIX, IMAGES) == pytest.approx(BY_HAND[name])


@pytest.mark.parametrize("name", SCORES)
def test_perfect_learning_without_forgetting_is_the_best_value(name: str) -> None:
    perfect = SCORES[name].function([[1.0], [1.0, 1.0]], [2, 2])
    forgotten = SCORES[name].function([[1.0], [0.0, 0.5]], [2, 2])
    assert perfect > forgotten if SCORES[name].better == "high" else perfect < forgotten


def test_the_keys_of_run_json_are_stable() -> None:
    assert {
        "final_average_accuracy",
        "cumulative_average_accuracy",
        "forgetting",
        "sample_weighted_accuracy",
    } <= set(SCORES)
    assert all_scores([], IMAGES) == dict.fromkeys(SCORES)


def test_stages_count_images_where_papers_count_images() -> None:
    """Tasks of 10, 1 and 1 classes: the first is kept, the others are not learned at all."""
    matrix, images = [[0.9], [0.9, 0.0], [0.9, 0.0, 0.0]], [1000, 100, 100]
    scores_of_run = all_scores(matrix, images)
    by_tasks = (0.9 + 0.45 + 0.3) / 3
    by_images = (0.9 + 900 / 1100 + 900 / 1200) / 3
    assert scores_of_run["cumulative_average_accuracy"] == pytest.approx(by_tasks)
    assert scores_of_run["average_incremental_accuracy"] == pytest.approx(by_images)
    assert by_images - by_tasks > 0.25
    equal = all_scores(matrix, [7, 7, 7])
    assert equal["average_incremental_accuracy"] == pytest.approx(by_tasks)


def test_without_numbers_of_images_the_recorded_score_counts() -> None:
    record = {"accuracy_matrix": [[1.0, None], [0.5, 0.8]], "cumulative_average_accuracy": 0.825}
    assert recorded_scores(record)["cumulative_average_accuracy"] == 0.825
    assert recorded_scores(record)["average_incremental_accuracy"] is None


def test_older_runs_have_newer_scores() -> None:
    tasks = [{"test": number} for number in IMAGES]
    record = {"accuracy_matrix": [[1.0, None], [0.5, 0.8]], "tasks": tasks}
    assert recorded_scores(record) == pytest.approx(BY_HAND)
    assert recorded_scores({"forgetting": 0.25})["forgetting"] == 0.25
    assert recorded_scores({})["forgetting"] is None


def test_one_entry_adds_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In run.json, on the terminal, in `scores`, `smope collect`, its list of runs, the report."""
    definition = "the lowest accuracy on any task after the last one (nobody)"
    worst = Score("worst task", "worst", definition, lambda matrix, _: min(matrix[-1]))
    monkeypatch.setitem(SCORES, "worst_task", worst)
    history = History([4, 4], accuracy_matrix=[[1.0], [0.5, 1.0]])
    record = history.record()
    assert record["worst_task"] == 0.5
    assert re.search(r"^worst task +50\.00 %$", score_lines(record), re.MULTILINE)
    run_dir = write_run(tmp_path / "runs" / "run", **record)
    assert json.loads((run_dir / "run.json").read_text())["worst_task"] == 0.5
    assert scores(load_runs(run_dir))["worst_task"].tolist() == [0.5]
    runs_file = tmp_path / "runs.csv"
    assert main(["collect", str(run_dir), "--runs", str(runs_file)]) == 0
    head, row = capsys.readouterr().out.splitlines()[2:4]
    assert dict(zip(re.split(r"\s{2,}", head), re.split(r"\s{2,}", row), strict=True))["worst"] == (
        "50.00"
    )
    assert "worst_task" in runs_file.read_text().splitlines()[0].split(",")
    assert main(["report", str(run_dir), "--out", str(tmp_path / "page.html")]) == 0
    assert definition in (tmp_path / "page.html").read_text()
