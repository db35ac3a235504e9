"""Every training step once, with its number, and an accelerator is not waited for at each of
them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from smope.cli.main import main
from smope.methods.smope import SMoPE
from smope.routers.topk import TopK
from smope.trackers.base import Tracker
from smope.training.step_log import WINDOW_STEPS, StepLog
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream


class Listener(Tracker):
    """Keeps what it is told of steps, and how often it is told."""

    def __init__(self, wants_steps: bool = True) -> None:
        self.wants_steps = wants_steps
        self.rows: dict[int, Mapping[str, float]] = {}
        self.sizes: list[int] = []
        self.epochs: list[int] = []

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        assert not self.epochs or first > self.epochs[-1], "steps never go back"
        self.rows |= dict(enumerate(rows, first))
        self.sizes.append(len(rows))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.epochs.append(step)


def test_windows_and_what_is_left() -> None:
    listener = Listener()
    log = StepLog(listener)
    for step in range(1, WINDOW_STEPS + 3):
        log.add(step, {"loss": torch.tensor(1.0 / step, dtype=torch.float64)}, [5e-3, 1e-3])
        assert listener.sizes == ([WINDOW_STEPS] if step >= WINDOW_STEPS else [])
    log.flush()
    log.flush()
    assert listener.sizes == [WINDOW_STEPS, 2]
    assert list(listener.rows) == list(range(1, WINDOW_STEPS + 3))
    assert listener.rows[2] == {"loss": 0.5, "learning_rate": 1e-3, "learning_rate_group_1": 5e-3}


def test_nothing_is_gathered_for_who_does_not_want_it() -> None:
    listener = Listener(wants_steps=False)
    log = StepLog(listener)
    log.add(1, {"loss": torch.tensor(1.0)}, [1e-3])
    log.flush()
    assert listener.sizes == []


def test_a_trainer_tells_every_step_once() -> None:
    torch.manual_seed(0)
    method, listener = (
        SMoPE(tiny_backbone(depth=2), 4, router=TopK(2), num_experts=4, blocks=[0]),
        Listener(),
    )
    Trainer(
        method,
        tiny_stream(),
        tiny_settings(epochs=2),
        seed=0,
        device=torch.device("cpu"),
        tracker=listener,
    ).fit()
    assert list(listener.rows) == list(range(1, listener.epochs[-1] + 1))
    assert {"loss", "cross_entropy", "learning_rate", "learning_rate_group_1"} <= set(
        listener.rows[1]
    )
    for row in listener.rows.values():
        parts = [
            value
            for name, value in row.items()
            if name != "loss" and not name.startswith("learning_rate")
        ]
        assert row["loss"] == pytest.approx(sum(parts), abs=1e-6)


@pytest.mark.usefixtures("few_digits")
def test_steps_of_a_run_average_to_its_epochs(tmp_path: Path) -> None:
    quick = [
        "experiment=smoke",
        "backbone.image_size=8",
        "trainer.batch_size=16",
        "method=finetune",
    ]
    assert main(["train", *quick, "tracker=tensorboard", f"run_dir={tmp_path / 'run'}"]) == 0
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    steps = {event.step: event.value for event in events.Scalars("step/loss")}
    assert sorted(steps) == list(range(1, int(epochs[-1]["step"]) + 1))
    start = 0
    for epoch in epochs:
        stop = int(epoch["step"])
        mean = sum(steps[step] for step in range(start + 1, stop + 1)) / (stop - start)
        assert mean == pytest.approx(float(epoch["loss"]), rel=1e-5)
        start = stop
