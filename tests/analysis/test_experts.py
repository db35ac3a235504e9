"""Use and movement of experts, on one block with one head of four experts; see
made_runs.expert_snapshots.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pandas
import pytest

from smope.analysis import (
    drift_and_forgetting,
    expert_drift,
    expert_load,
    expert_use,
    relation,
    rerouting_of_images,
    task_overlap,
)
from smope.analysis.drift import change, rerouted
from smope.analysis.run import Run
from smope.errors import UserError
from tests.analysis.made_runs import expert_run, usual_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return expert_run(tmp_path / "run")


def test_load(run: Run) -> None:
    load = expert_load(run)
    assert load.shape == (2, 1, 1, 4)
    assert load[0, 0, 0].tolist() == [0.75, 1.0, 0.25, 0.0]
    assert load[1, 0, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    assert expert_load(run, after=1)[0, 0, 0].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_overlap(run: Run) -> None:
    # half loads: (.375, .5, .125, 0) and (0, .5, .5, 0)
    assert task_overlap(run).to_numpy() == pytest.approx(numpy.array([[1.0, 0.625], [0.625, 1.0]]))


def test_dead_and_effective_experts(run: Run) -> None:
    first, second = expert_use(run).to_dict("records")
    assert first == {
        "after_task": 1,
        "block": 1,
        "dead": 0.5,
        "effective": pytest.approx(2.0),
        "busiest": 1.0,
        "max_violation": 1.0,
        "margin": pytest.approx(math.nan, nan_ok=True),
        "overlap": pytest.approx(math.nan, nan_ok=True),
    }
    share = [3 / 16, 8 / 16, 5 / 16]
    entropy = -sum(part * math.log(part) for part in share)
    assert second["dead"] == 0.25
    assert second["effective"] == pytest.approx(math.exp(entropy))
    assert second["max_violation"] == pytest.approx(8 / 16 * 4 - 1)
    assert second["overlap"] == pytest.approx(0.625), "see test_overlap"


def test_drift(run: Run) -> None:
    (row,) = expert_drift(run).to_dict("records")
    assert row == {
        "after_task": 2,
        "block": 1,
        "keys": pytest.approx(0.25),
        "values": pytest.approx(0.5),
    }
    assert change(numpy.array([[3.0, 4.0]]), numpy.array([[3.0, 9.0]])).tolist() == [1.0]


def test_drift_is_weighted_by_the_task_s_own_use(run: Run) -> None:
    (row,) = drift_and_forgetting(run).to_dict("records")
    assert (row["after_task"], row["task"], row["lost"]) == (2, 1, 0.5)
    # task 1 used experts 0 and 1 alike: one has doubled, one stayed
    assert row["keys"] == pytest.approx(0.5)
    assert row["values"] == pytest.approx(0.5)
    # one of four images has exchanged one of two experts
    assert row["rerouted"] == pytest.approx(1 / 8)
    assert row["overlap"] == pytest.approx(0.625), "see test_overlap"
    assert row["dead"] == 0.25


def test_the_order_of_choices_does_not_matter() -> None:
    old = numpy.array([[[[0, 1, 2]]], [[[3, 4, 5]]]])
    new = numpy.array([[[[2, 0, 1]]], [[[3, 6, 7]]]])
    assert rerouted(old, new) == pytest.approx([0.0, 2 / 3])


def test_forgotten_images_and_their_routing(run: Run) -> None:
    forgotten, kept = rerouting_of_images(run).to_dict("records")
    assert forgotten == {"still_right": False, "images": 2, "rerouted": pytest.approx(0.25)}
    assert kept == {"still_right": True, "images": 2, "rerouted": pytest.approx(0.0)}


def test_relation_by_hand() -> None:
    frame = pandas.DataFrame(
        {
            "lost": [0.1, 0.2, 0.3, 0.4],
            "keys": [1, 2, 3, 4],
            "values": [4, 3, 2, 1],
            "rerouted": [1, 1, 1, 1],
            "overlap": [1, 3, 2, 4],
            "dead": [2, 1, 4, 3],
        }
    )
    table = relation(frame)
    assert table.loc["keys", "rho"] == pytest.approx(1.0)
    assert table.loc["values", "rho"] == pytest.approx(-1.0)
    assert math.isnan(table.loc["rerouted", "rho"])
    # 1 - 6 · (sum of squared differences of ranks) / (n (n^2 - 1))
    assert table.loc["overlap", "rho"] == pytest.approx(1 - 6 * 2 / 60)
    assert table.loc["dead", "rho"] == pytest.approx(1 - 6 * 4 / 60)
    assert relation(frame.head(2))["rho"].isna().all()


def test_a_method_without_experts_is_told_apart(tmp_path: Path) -> None:
    plain = usual_run(tmp_path / "run", method="ncm")
    for function in (expert_load, expert_use, task_overlap):
        with pytest.raises(UserError, match="method ncm chooses no experts"):
            function(plain)
    with pytest.raises(UserError, match="method ncm has no experts"):
        expert_drift(plain)


def test_movement_leaves_out_what_was_not_recorded(run: Run) -> None:
    (run.path / "analysis" / "task-001.safetensors").unlink()
    assert expert_drift(run).empty
    assert drift_and_forgetting(run).empty
    assert rerouting_of_images(run).empty
