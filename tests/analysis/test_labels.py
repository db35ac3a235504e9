"""One label for a configuration and one rule for repeats, wherever runs are shown."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import smope.analysis
from smope.analysis import load_runs
from smope.analysis.loading import find_runs, read_finished
from smope.analysis.tables import result_tables
from smope.cli.main import main
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.report.sections.accuracy import score_grid
from smope.trackers.wandb import WandbTracker
from tests.analysis.made_runs import write_run

Make = Callable[..., Path]
MATRIX = [[1.0, None], [0.5, 1.0]]
OTHER_MATRIX = [[1.0, None], [0.25, 1.0]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a finished run: make("seed0", "seed=0 trainer.learning_rate=0.005")."""

    def write(name: str, overrides: str = "", **changes: Any) -> Path:
        config = compose(read_overrides(overrides.split()))
        values = {
            "config": config.as_dict(),
            "seed": config.seed,
            "method": config.method["_target_"].split(".")[-2],
            "stream": {"name": "digits", "content_hash": "c" * 64, "identity": str(config.seed)},
            "backbone": {"name": "glyph", "sha256": "b" * 64, "mean": [0.5], "std": [0.5]},
        }
        return write_run(tmp_path / "runs" / name, **(values | changes))

    return write


def wandb_group(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The group that a run gets when it starts; W&B is not contacted."""
    groups: list[str] = []
    monkeypatch.setattr("wandb.init", lambda **values: groups.append(values["group"]))
    record = json.loads((path / "run.json").read_text())
    WandbTracker(mode="offline").start(record["config"], path, record["config"]["name"])
    return groups[0]


def grouped(pairs: Iterable[tuple[str, Path]]) -> set[frozenset[str]]:
    """Which run directories have a key in common."""
    groups: dict[str, set[str]] = {}
    for key, path in pairs:
        groups.setdefault(key, set()).add(path.name)
    return {frozenset(names) for names in groups.values()}


def test_collect_report_load_runs_and_wandb_agree(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make("a0", "seed=0")
    make("a1", "seed=1 name=another trainer.device=cpu stream.cache_gb=2.0 tracker=csv")
    make("a1-again", "seed=1")
    make("b0", "seed=0 trainer.learning_rate=0.05")
    make("c0", "seed=0 method.num_experts=10 trainer.learning_rate=0.05")
    make("ncm0", "seed=0 method=ncm")
    folder = tmp_path / "runs"
    labels = {
        "smope (num_experts=25, trainer.learning_rate=0.005)": {"a0", "a1", "a1-again"},
        "smope (num_experts=25, trainer.learning_rate=0.05)": {"b0"},
        "smope (num_experts=10, trainer.learning_rate=0.05)": {"c0"},
        "ncm": {"ncm0"},
    }
    groups = {frozenset(names) for names in labels.values()}

    loaded = load_runs(folder)
    assert {run.label for run in loaded} == set(labels)
    paths = [(run.label, path) for run in loaded for path in (run.path, *run.repeats)]
    assert grouped(paths) == groups

    (table,) = result_tables(read_finished(find_runs([str(folder)]))[0])
    assert {row.label: {run.path.name for run in row.runs.values()} for row in table.rows} == {
        label: names - {"a1-again"} for label, names in labels.items()
    }
    assert main(["collect", str(folder)]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^{re.escape(label)} ", text, re.MULTILINE) for label in labels)
    assert "a1-again repeats" in text and "counted once" in text

    assert {line[0] for line in score_grid(loaded)[1:]} == set(labels)
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert all(label in page for label in labels)
    assert "a1-again repeats" in page

    assert grouped((wandb_group(path, monkeypatch), path) for path in folder.iterdir()) == groups


def test_several_benchmarks_are_named_after_the_method(make: Make, tmp_path: Path) -> None:
    make("five", "method.num_experts=10 stream.num_tasks=5")
    make("five-more", "method.num_experts=25 stream.num_tasks=5")
    make("two", "method.num_experts=25 stream.num_tasks=2")
    assert {run.path.name: run.label for run in load_runs(tmp_path)} == {
        "five": "smope (num_experts=10) on digits (num_tasks=5)",
        "five-more": "smope (num_experts=25) on digits (num_tasks=5)",
        "two": "smope on digits (num_tasks=2)",
    }
    tables = result_tables(read_finished(find_runs([str(tmp_path)]))[0])
    rows = {run.path.name: row.label for table in tables for row in table.rows
            for run in row.runs.values()}  # fmt: skip
    assert rows == {run.path.name: run.method_label for run in load_runs(tmp_path)}


def test_a_router_is_named_as_it_is_chosen(make: Make, tmp_path: Path) -> None:
    make("noise")
    make("topk", "router=topk seed=1")
    assert {run.path.name: run.label for run in load_runs(tmp_path)} == {
        "noise": "smope (router=adaptive_noise)",
        "topk": "smope (router=topk)",
    }
    make("less-noise", "router.epsilon=0.1")
    assert {run.path.name: run.label for run in load_runs(tmp_path)} == {
        "noise": "smope (router=adaptive_noise, router.epsilon=0.4)",
        "less-noise": "smope (router=adaptive_noise, router.epsilon=0.1)",
        "topk": "smope (router=topk)",
    }


@pytest.mark.parametrize("read", [load_runs, lambda folder: read_finished(find_runs([folder]))])
def test_a_seed_with_two_results_is_an_error(
    read: Callable[[str], object], make: Make, tmp_path: Path
) -> None:
    make("first", "seed=3")
    make("second", "seed=3", accuracy_matrix=OTHER_MATRIX)
    message = r"smope, seed 3: .*first and .*second have the same settings and other numbers, .*out"
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / "runs"))


def test_an_unfinished_repeat_does_not_contradict(make: Make, tmp_path: Path) -> None:
    make("first", "seed=3")
    make("second", "seed=3", status="running", accuracy_matrix=[[0.9, None], [None, None]])
    runs = load_runs(tmp_path / "runs")
    assert [(run.path.name, run.repeats) for run in runs] == [("first", ()), ("second", ())]
    finished, left_out = read_finished(find_runs([str(tmp_path / "runs")]))
    assert [run.path.name for run in finished] == ["first"]
    assert len(left_out) == 1


def test_no_function_is_hidden_by_a_module() -> None:
    """`from smope.analysis import x` gives the function, also once the module x is imported."""
    modules = {module.name for module in pkgutil.iter_modules(smope.analysis.__path__)}
    assert not modules & set(smope.analysis.__all__)
    for module in modules:
        importlib.import_module(f"smope.analysis.{module}")
    for name in smope.analysis.__all__:
        assert callable(getattr(smope.analysis, name)), name
