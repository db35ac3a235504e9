"""A new router, method or stream is one Python file and one YAML file, and no other edit."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from smope.cli.main import main
from smope.config.config import load_config
from smope.config.hydra import compose
from smope.config.identity import flatten, immaterial, may_move
from smope.config.overrides import read_overrides
from smope.errors import UserError

ROUTER = """
from __future__ import annotations

from typing import Annotated

from torch import Tensor

from smope.declare.ranges import AtLeast, NotNegative
from smope.routers.base import ExpertState, Router, Routing, choose, proxy_scores


class Shy(Router):
    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        closeness: Annotated[float, NotNegative()] = 0.1,
    ) -> None:
        super().__init__(top_k)
        self.closeness = closeness

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        scores = proxy_scores(query, keys)
        return choose(scores, scores, self.top_k, state.available)
"""
METHOD = """
from __future__ import annotations

from torch import Tensor

from smope.methods.base import TaskSpan
from smope.methods.smope import SMoPE


class Calm(SMoPE):
    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        weights = self.classifier.weight
        return {**super().losses(images, labels, task), "calmness": 1e-4 * weights.square().sum()}
"""
STREAM = """
from __future__ import annotations

from pathlib import Path

import numpy

from smope.streams.source import ImageSet, Source


def load(labels: Path, shade: int = 90) -> Source:
    assert labels.is_absolute()
    names = tuple(labels.read_text(encoding="utf-8").split())
    draw = numpy.random.default_rng(0)

    def images(number: int) -> ImageSet:
        targets = [index % len(names) for index in range(number * len(names))]
        pixels = [draw.integers(0, shade + 40 * label, (8, 8, 3), "uint8") for label in targets]
        return ImageSet(targets, pixels)

    return Source("greys", names, images(16), images(4))
"""
YAML = {
    "router": "_target_: smope_test_shy.Shy\ntop_k: 5\ncloseness: 0.1\n",
    "method": "_target_: smope_test_calm.Calm\n",
    "stream": "defaults: [_shared, _self_]\n\n_target_: smope_test_greys.load\nname: greys\n"
    "labels: ???\nnum_tasks: 2\nflip: false\ncache_gb: 0.0\n",
}
CHOICES = {"router": "shy", "method": "calm", "stream": "greys"}
NEW = [f"{group}={choice}" for group, choice in CHOICES.items()]
SMALL = [
    "experiment=smoke",
    "backbone.image_size=8",
    "trainer.batch_size=16",
    "trainer.frozen_steps=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One Python file and one YAML file for each of the three; HOME, where the labels are."""
    folder = tmp_path_factory.mktemp("extensions")
    for choice, source in (("shy", ROUTER), ("calm", METHOD), ("greys", STREAM)):
        (folder / f"smope_test_{choice}.py").write_text(source)
    for group, choice in CHOICES.items():
        path = folder / "conf" / group / f"{choice}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(YAML[group])
    (folder / "my labels, 1.txt").write_text("ash bone coal dust")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def run_dir(folder: Path) -> Path:
    run_dir = folder / "runs" / "first"
    assert main(command(folder, "stream.labels=~/my labels, 1.txt", f"run_dir={run_dir}")) == 0
    return run_dir


def command(folder: Path, *overrides: str) -> list[str]:
    return ["train", *SMALL, *NEW, *overrides, "--config-dir", str(folder / "conf")]


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    capsys.readouterr()
    assert main(command(folder, *overrides)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_a_range_is_kept(folder: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    error = refused(folder, capsys, "stream.labels=x", f"router.closeness={value}")
    rule = r"router\.closeness must be a finite number, 0 or more, got"
    assert re.search(rf"{rule} {value}.*; write for example router\.closeness=0\.1", error)


def test_a_path_without_a_value_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(folder, capsys)
    assert "stream.labels has no value yet; write stream.labels=<path>" in error


def test_an_empty_path_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "stream.labels must be a path, got ''" in refused(folder, capsys, "stream.labels=")


def test_the_path_is_absolute_text(run_dir: Path, folder: Path) -> None:
    config = load_config(run_dir)
    assert config.stream["labels"] == str(folder / "my labels, 1.txt")


def test_a_resumed_run_may_find_the_path_elsewhere(run_dir: Path) -> None:
    settings = flatten(load_config(run_dir).as_dict())
    assert may_move("stream.labels", settings) and immaterial("stream.labels", settings)
    assert not may_move("stream.shade", settings) and not immaterial("stream.shade", settings)


def test_keys_of_the_base_class_are_keys_of_the_method(run_dir: Path) -> None:
    assert load_config(run_dir).method["num_experts"] == 25


def test_the_loss_has_a_column(run_dir: Path) -> None:
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and all(float(row["calmness"]) > 0 for row in rows)


def test_report_and_collect_show_the_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run_dir / "report.html"
    assert main(["report", str(run_dir), "--out", str(page)]) == 0
    assert "smope_test_calm" in page.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["collect", str(run_dir)]) == 0
    assert "smope_test_calm" in capsys.readouterr().out


MISTAKES = {
    "Annotated[float, Positive]": r"Positive is no constraint of smope\.declare; .* call it",
    "Annotated[float, Unknown()]": r"Unknown\(\) is no constraint of smope\.declare",
    "Annotated[int, AtLeast(LOWEST)]": r"AtLeast\(LOWEST\) cannot be read .* must be literals",
    "Annotated[int, AtLeast(1, 2, 3)]": r"AtLeast\(1, 2, 3\) cannot be read",
    "list[Annotated[int, AtLeast(1)]]": r"has a constraint inside of a container",
}


@pytest.mark.parametrize("annotation", MISTAKES)
def test_a_declaration_that_cannot_be_read(
    annotation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error: a rule that is never checked would pass unnoticed."""
    module = f"smope_test_wrong_{list(MISTAKES).index(annotation)}"
    (tmp_path / f"{module}.py").write_text(
        "from typing import Annotated\n"
        "from smope.declare.ranges import AtLeast, Positive\n"
        f"class Wrong:\n    def __init__(self, size: {annotation} = 1) -> None: ...\n"
    )
    (tmp_path / "conf" / "router").mkdir(parents=True)
    (tmp_path / "conf" / "router" / "wrong.yaml").write_text(f"_target_: {module}.Wrong\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=MISTAKES[annotation]):
        compose(read_overrides(["router=wrong"], str(tmp_path / "conf")))
