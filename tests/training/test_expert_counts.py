"""Evaluation counts the experts that it chooses anyway: in run.json, checkpoints and trackers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from smope.analysis import expert_use, load_runs
from smope.cli.main import main
from smope.methods._shared.routed_method import routings_of
from smope.metrics.expert_use import summarise_use
from smope.routers.base import Routing
from smope.trackers.base import Tracker
from smope.training.expert_counts import ExpertCounts, count_choices, top_k_margin
from smope.training.history import History
from smope.training.outputs import Outputs
from smope.training.trainer import Trainer
from tests.contracts.conftest import make_method
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream


def trainer_of(name: str) -> Trainer:
    method = make_method(name, tiny_backbone(), 4)
    settings = tiny_settings(epochs=1)
    return Trainer(method, tiny_stream(), settings, seed=0, device=torch.device("cpu"))


class Heard(Tracker):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log_experts(self, values: Mapping[str, float], step: int) -> None:
        self.calls.append((dict(values), step))


@pytest.fixture(scope="module")
def trained() -> tuple[Trainer, Heard]:
    trainer, tracker = trainer_of("smope"), Heard()
    trainer.outputs = Outputs(tracker=tracker)
    trainer.fit()
    return trainer, tracker


def test_counts_are_those_of_the_test_images(trained: tuple[Trainer, Heard]) -> None:
    trainer, _ = trained
    method = trainer.method.eval()
    counts, margins = numpy.zeros((2, 6, 2, 25), int), numpy.zeros(6)
    images = sum(len(task.test) for task in trainer.stream.tasks)
    with torch.no_grad():
        for number, task in enumerate(trainer.stream.tasks):
            for index in range(len(task.test)):
                method(task.test[index][0][None])
                for block, routing in enumerate(routings_of(method)):
                    for head in range(2):
                        counts[number, block, head, routing.expert_ids[0, head].numpy()] += 1
                        scores = sorted(routing.scores[0, head].tolist(), reverse=True)
                        margin = (scores[4] - scores[5]) / (scores[0] - scores[-1])
                        margins[block] += margin / (2 * images)
    first, last = trainer.history.expert_use
    chosen = trainer.method.top_k
    assert last == {**summarise_use(counts, chosen, []), "margin": pytest.approx(list(margins))}
    assert (first["after_task"], first["overlap"]) == (1, None)


def test_the_margin_by_hand() -> None:
    scores = torch.tensor([[7.0, 1.0, 4.0, 6.0], [2.0, 2.0, 2.0, 2.0]])
    assert top_k_margin(scores, 1).tolist() == pytest.approx([1 / 6, 0])
    assert top_k_margin(scores, 2).tolist() == pytest.approx([2 / 6, 0])
    assert top_k_margin(scores, 3).tolist() == pytest.approx([3 / 6, 0])


def test_history_comes_back_with_them(trained: tuple[Trainer, Heard]) -> None:
    history = trained[0].history
    stored = json.loads(json.dumps(history.as_dict()))
    assert History.read(stored, Path("2.safetensors")) == history
    assert history.record()["experts"] == history.expert_use
    del stored["expert_use"]  # as older checkpoints are
    assert History.read(stored, Path("2.safetensors")).expert_use == []


def test_trackers_hear_of_them(trained: tuple[Trainer, Heard]) -> None:
    trainer, tracker = trained
    assert [step for _, step in tracker.calls] == [6, 9]
    use = trainer.history.expert_use[-1]
    values = tracker.calls[-1][0]
    assert values["effective"] == pytest.approx(numpy.mean(use["effective"]))
    assert values["effective_block_6"] == use["effective"][5]


def test_nothing_is_counted_where_nothing_is_chosen() -> None:
    trainer = trainer_of("ncm")
    trainer.fit()
    assert "experts" not in trainer.history.record()
    counts, scores = ExpertCounts(), torch.rand(2, 1, 3)
    routing = Routing(scores, torch.arange(3).expand(2, 1, 3), scores)  # all of three experts
    method: Any = SimpleNamespace(dense_epochs=0, experts=[], routings=[routing])
    counts.add(count_choices(method))
    counts.end_task()
    assert counts.summary() is None


@pytest.mark.usefixtures("few_digits")
def test_a_run_says_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["experiment=smoke", "backbone.image_size=8", "trainer.batch_size=32"]
    overrides = [*small, "method=smope", f"run_dir={tmp_path}/run", "trainer.device=cpu"]
    assert main(["train", *overrides]) == 0
    printed = capsys.readouterr().out
    (run,) = load_runs(tmp_path / "run")
    frame = expert_use(run)
    for use in run.record["experts"]:
        rows = frame[frame["after_task"] == use["after_task"]]
        for name in ("effective", "dead", "max_violation", "margin"):
            assert rows[name].tolist() == pytest.approx(use[name])
        if use["overlap"] is not None:
            assert rows["overlap"].tolist() == pytest.approx(use["overlap"])
    assert "The mixture has collapsed: " in printed
    assert main(["collect", str(tmp_path / "run")]) == 0
    head, *_ = [line for line in capsys.readouterr().out.splitlines() if "seeds" in line]
    assert "effective experts" in head and "top-k margin" in head
