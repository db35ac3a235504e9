"""Learning rates step by step: by hand, and as the authors' code uses them where its list is at
hand.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from smope.errors import UserError
from smope.training.schedule import (
    alignment_cosine,
    epoch_cosine,
    make_schedule,
    warm_frozen_cosine,
)
from smope.training.settings import TrainerSettings

HALF = math.sqrt(0.5)
# 2 steps at 1e-6, then 1e-6 + (0.002001 - 1e-6)/2·(1 + cos(pi·i/4)) for i = 0..3, then 1e-6.
COSINE = [
    1e-6,
    1e-6,
    0.002001,
    1e-6 + 0.001 * (1 + HALF),
    0.001001,
    1e-6 + 0.001 * (1 - HALF),
    1e-6,
    1e-6,
]
# 0.1·cos(99·pi·e / (200·3)) for e = 0..3: cos 0, cos 29.7, cos 59.4 and cos 89.1 degrees.
EPOCHS = [0.1, 0.0868631514, 0.0509041415, 0.00157073173]


def test_warm_frozen_cosine() -> None:
    rates = [warm_frozen_cosine(0.002001, step, 6, 2, lag=False) for step in range(8)]
    assert rates == pytest.approx(COSINE, rel=1e-12)


def test_warm_frozen_cosine_with_lag() -> None:
    """The first step at the full rate; each later one uses the rate of the step before."""
    rates = [warm_frozen_cosine(0.002001, step, 6, 2) for step in range(9)]
    assert rates == pytest.approx([0.002001, *COSINE], rel=1e-12)


def test_epoch_cosine() -> None:
    assert [epoch_cosine(0.1, epoch, 4, lag=False) for epoch in range(4)] == pytest.approx(
        EPOCHS, rel=1e-8
    )
    assert [epoch_cosine(0.1, epoch, 4) for epoch in range(4)] == pytest.approx(
        [0.1, *EPOCHS[:3]], rel=1e-8
    )
    assert epoch_cosine(0.1, 0, 1, lag=False) == 0.1


def test_alignment_cosine() -> None:
    """From 1e-5 to 1e-6 over 4 steps: 5.5e-6 ± 4.5e-6·cos(pi·i/4).

    With lag the first step is ten times too fast.
    """
    by_hand = [1e-5, 5.5e-6 + 4.5e-6 * HALF, 5.5e-6, 5.5e-6 - 4.5e-6 * HALF]
    assert [alignment_cosine(1e-5, step, 4, lag=False) for step in range(4)] == pytest.approx(
        by_hand, rel=1e-12
    )
    assert [alignment_cosine(1e-5, step, 4) for step in range(4)] == pytest.approx(
        [1e-4, *by_hand[:3]], rel=1e-12
    )


@pytest.mark.parametrize(("iter_step", "per_epoch"), [(None, 3), (3, 50)])
def test_steps_follow_from_the_loader_unless_pinned(iter_step: int | None, per_epoch: int) -> None:
    settings = TrainerSettings(frozen_steps=2, iter_step=iter_step, schedule_lag=False)
    schedule = make_schedule(settings, 2, per_epoch)
    assert [schedule(0.002001, step, step // 3) for step in range(8)] == pytest.approx(
        COSINE, rel=1e-12
    )


@pytest.mark.parametrize("lag", [True, False])
def test_epoch_cosine_changes_by_epoch_alone(lag: bool) -> None:
    schedule = make_schedule(TrainerSettings(schedule="epoch_cosine", schedule_lag=lag), 4, 50)
    expected = [0.1, *EPOCHS[:3]] if lag else EPOCHS
    assert [
        schedule(0.1, step, epoch) for epoch in range(4) for step in (50 * epoch, 50 * epoch + 49)
    ] == (pytest.approx([rate for rate in expected for _ in range(2)], rel=1e-8))


def test_frozen_steps_must_leave_some() -> None:
    make_schedule(TrainerSettings(frozen_steps=11), 4, 3)
    with pytest.raises(
        UserError, match=r"trainer\.frozen_steps=12 must be below the steps .* 12 \(4 epochs of 3\)"
    ):
        make_schedule(TrainerSettings(frozen_steps=12), 4, 3)


@pytest.fixture
def published(data_root: Path) -> dict[str, Any]:
    path = data_root.parent / "reference" / "schedules.json"
    if not path.is_file():
        pytest.skip("no reference schedules beside the data")
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "name", ["warm_frozen_cosine", "warm_frozen_cosine_no_freeze", "epoch_cosine"]
)
def test_equals_the_published_program(name: str, published: dict[str, Any]) -> None:
    case = published[name]
    epochs, by_epoch = case["epochs"], name == "epoch_cosine"
    keys = (
        {"schedule": "epoch_cosine"}
        if by_epoch
        else {key: case[key] for key in ("frozen_steps", "iter_step")}
    )
    schedule = make_schedule(TrainerSettings(**keys), epochs, 1 if by_epoch else case["iter_step"])
    bases = (case["lr"] * case["expert_factor"], case["lr"])
    assert [
        [schedule(base, place, place) for base in bases] for place in range(len(case["rates"]))
    ] == case["rates"]


def test_alignment_equals_the_published_program(published: dict[str, Any]) -> None:
    case = published["alignment"]
    total = case["old_classes"] * case["epochs"]
    assert len(case["rates"]) == total
    assert [[alignment_cosine(1e-5, step, total)] for step in range(total)] == case["rates"]
