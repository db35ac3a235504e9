"""The first paragraph: computed from the run, in plain words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from smope.analysis.intervals import over_images, over_seeds, wilson_interval
from smope.analysis.loading import load_runs
from smope.report.sections.verdict import verdict
from tests.analysis.made_runs import expert_snapshots, usual_snapshots, write_run

NCM = {"seed": 0, "name": "made", "method": {"_target_": "smope.methods.ncm.NearestClassMean"}}


def paragraph(folder: Path) -> str:
    return verdict(load_runs(folder)).lead


def test_one_run_in_all_its_words(tmp_path: Path) -> None:
    backbone = {"name": "vit_made"}
    write_run(tmp_path / "run", snapshots=expert_snapshots(), backbone=backbone)
    assert paragraph(tmp_path) == (
        "smope was trained on made: 4 classes in 2 tasks, 8 training and 8 test images, with the "
        "backbone vit_made. After the last task its accuracy is 75.0 % (95 % interval 44.9 to 92.5 "
        "over test images), mean over tasks. Guessing would give 25.0 %. It has forgotten 50.0 "
        "points: task 1 fell from 100.0 to 50.0 %. The mixture of experts has not collapsed: 2.8 "
        "of 4 experts of a head are in effective use (2 would be a collapse, 4 even use). The "
        "weakest task is 1 with 50.0 %; 50 % of all errors are into another task. The worst class "
        "is a: 50.0 % of its 2 images are right, 50.0 % are taken for b."
    )


def test_a_collapsed_mixture_is_called_one(tmp_path: Path) -> None:
    snapshots = expert_snapshots()
    for arrays in snapshots.values():
        arrays["experts.0"] = numpy.zeros_like(arrays["experts.0"]) + numpy.array([0, 1], "uint8")
    write_run(tmp_path / "run", snapshots=snapshots)
    text = paragraph(tmp_path)
    assert "has collapsed: of 4 experts of a head only 2.0 are in effective use" in text
    assert "not collapsed" not in text


def test_some_blocks_may_have_collapsed(tmp_path: Path) -> None:
    snapshots = expert_snapshots()
    for arrays in snapshots.values():
        for name in ("keys", "values", "counts"):
            arrays[f"{name}.1"] = arrays[f"{name}.0"]
        chosen = arrays["experts.0"]
        arrays["experts.1"] = numpy.zeros_like(chosen) + numpy.array([0, 1], "uint8")
    config = {
        "seed": 0,
        "name": "made",
        "method": {"_target_": "smope.methods.smope.SMoPE", "blocks": [2, 5]},
    }
    write_run(tmp_path / "run", snapshots=snapshots, config=config)
    assert (
        "has collapsed in block 5 (2.0 of 4 experts of a head in effective use) and not in the "
        "others (2.8; 2 would be a collapse, 4 even use)" in paragraph(tmp_path)
    )


@pytest.mark.parametrize(
    ("old", "words"),
    [
        (1.0, "Next to nothing was forgotten (0.0 points on average)."),
        (0.5, "It has forgotten 50.0 points: task 1 fell from 100.0 to 50.0 %."),
    ],
)
def test_what_was_forgotten(old: float, words: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", accuracy_matrix=[[1.0, None], [old, 1.0]])
    assert words in paragraph(tmp_path)


def test_a_gain_is_no_forgetting(tmp_path: Path) -> None:
    write_run(tmp_path / "run", accuracy_matrix=[[0.5, None], [0.75, 1.0]])
    text = paragraph(tmp_path)
    assert "earlier tasks have become better by 25.0 points" in text
    assert "mixture" not in text and "worst class" not in text, "nothing of it was recorded"


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "run", status="running", accuracy_matrix=[[1.0, None], [None, None]])
    text = paragraph(tmp_path)
    assert "Only 1 of 2 tasks are finished" in text
    assert "After task 1 its accuracy is 100.0 %" in text and "mean over tasks" not in text
    assert "Guessing would give 50.0 %" in text
    assert "With one task there is nothing to forget." in text


def make_two(folder: Path, seeds: range, **changes: Any) -> None:
    for seed in seeds:
        write_run(folder / f"smope-{seed}", snapshots=expert_snapshots(), seed=seed)
        matrix = [[1.0, None], [0.75 + 0.01 * seed, 1.0]]
        write_run(
            folder / f"ncm-{seed}",
            snapshots=usual_snapshots(),
            seed=seed,
            method="ncm",
            config={**NCM, "seed": seed},
            accuracy_matrix=matrix,
            **changes,
        )


def test_several_methods_are_ranked_and_chance_is_named(tmp_path: Path) -> None:
    make_two(tmp_path, range(3))
    text = paragraph(tmp_path)
    assert text.startswith("2 configurations were trained on made: 4 classes in 2 tasks")
    assert "The best final accuracy is that of ncm with 88.0 % (95 % interval 86.8 to 89.2" in text
    assert "then smope with 75.0 %" in text
    assert "may be chance (p = 0.25; with 3 seeds no difference could show more)" in text
    assert "ncm forgets least (24.0 points), smope most (50.0 points)." in text
    assert "The mixture of smope has not collapsed" in text
    assert "With ncm, the weakest task is 1 with 76.0 %" in text


def test_a_clear_difference_is_more_than_chance(tmp_path: Path) -> None:
    make_two(tmp_path, range(6))
    assert "is more than chance (p = 0.031)" in paragraph(tmp_path)


def test_other_streams_are_not_ranked(tmp_path: Path) -> None:
    stream = {"name": "other", "content_hash": "d", "identity": "j"}
    make_two(tmp_path, range(1), stream=stream)
    text = paragraph(tmp_path)
    assert "were trained on different streams, so their scores do not compare" in text
    assert "best" not in text


def test_what_makes_numbers_unusable_is_in_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", frozen_weights={"loaded": "a", "trained": "b"})
    audit = {
        "passed": False,
        "tasks_done": 2,
        "verdicts": [
            {"check": "overlap", "passed": False, "text": "3 images are in both"},
            {"check": "labels", "passed": True, "text": "none leaks"},
        ],
    }
    (run / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    text = paragraph(tmp_path)
    assert "smope, seed 0 has changed weights of the frozen backbone: do not use." in text
    assert "smope audit does not trust smope, seed 0: it failed overlap." in text


def test_intervals(tmp_path: Path) -> None:
    low, high = wilson_interval(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4), "Wilson 1927, by hand"
    assert wilson_interval(1.0, 20)[1] == 1.0 and wilson_interval(1.0, 20)[0] < 1
    one = tmp_path / "one"
    tasks = [{"name": "", "classes": [0, 1], "train": 4, "test": 10}]
    write_run(one / "run", accuracy_matrix=[[0.5]], tasks=tasks, class_names=["a", "b"])
    interval = over_images(load_runs(one)[0])
    assert interval == pytest.approx((low, high)), "a single task: its own interval"
    assert over_seeds([0.5, 0.6]) is None
    assert over_seeds([0.99, 1.0, 0.90]) == pytest.approx((0.8265, 1.0), abs=1e-4)


def test_the_verdict_says_when_nearest_class_mean_would_have_been_better(tmp_path: Path) -> None:
    reference = {"method": "ncm", "final_average_accuracy": 0.9}
    write_run(tmp_path / "run", snapshots=expert_snapshots(), reference=reference)
    assert (
        "reaches 90.00 %, which is 15.00 points more; with 8 test images that may be chance. "
        in paragraph(tmp_path)
    )
