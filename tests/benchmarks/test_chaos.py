"""benchmarks/chaos.py, a short version: real processes killed with SIGKILL and resumed, and some
broken input.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


@pytest.fixture(scope="module")
def chaos() -> Any:
    if not FOLDER.is_dir():
        pytest.skip("installed without the benchmarks")
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("chaos")
    finally:
        sys.path.remove(str(FOLDER))


SHORT = [
    "backbone.image_size=8",
    "method.blocks=[0]",
    "trainer.epochs=1",
    "trainer.alignment_epochs=1",
]


@pytest.mark.slow
def test_killed_runs_end_as_if_nothing_had_happened(
    chaos: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chaos.json"
    assert (
        chaos.main(
            [*SHORT, "--kills", "2", "--seed", "3", "--inputs", "pickle", "--json", str(file)]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "kills survived / tried: 2 / 2\nnumbers equal / tried: 2 / 2\n" in said
    assert "inputs tried / clear errors / crashes: 1 / 1 / 0" in said
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [kill["survived"] for kill in found["kills"]] == [True, True]
    assert found["inputs"][0]["name"] == "checkpoint that is a pickle with code"


@pytest.mark.usefixtures("few_digits")
def test_what_came_out_different_is_counted(
    chaos: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A campaign that cannot fail proves nothing: numbers, metrics, tensors are compared."""
    from smope.cli.main import main

    small = [
        "experiment=smoke",
        *SHORT[:2],
        "trainer.batch_size=16",
        "trainer.device=cpu",
        *SHORT[2:],
    ]
    runs = [tmp_path / name for name in ("one", "other")]
    for path, rate in zip(runs, ("0.005", "0.006"), strict=True):
        assert main(["train", *small, f"trainer.learning_rate={rate}", f"run_dir={path}"]) == 0
    assert chaos.differences(runs[0], runs[0]) == []
    found = chaos.differences(*runs)
    assert {
        "run.json config",
        "run.json config_hash",
        "metrics.csv",
        "tensor classifier.weight",
    } <= set(found)
    kill = chaos.Kill(1.0, [], "", True, found)
    assert chaos.summary([kill], [])["numbers_equal"] == 0
    assert chaos.summary([kill], [])["kills_survived"] == 1


def test_an_answer_that_is_not_clear_is_counted(
    chaos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = sys.modules["input_trial"]
    workspace = sys.modules["broken_inputs"].Workspace(
        tmp_path / "run", tmp_path / "images", tmp_path
    )
    (tmp_path / "run").mkdir()
    for ends, arguments, verdict in (
        ("stops", ["router.topk=3"], "clear"),
        ("stops", ["router.top_k=ten"], "unclear"),
        ("continues", ["router.topk=3"], "unclear"),
        ("stops", None, "crash"),
    ):
        monkeypatch.setitem(
            trial.INPUTS, "tried", (ends, r"did you mean router\.top_k", lambda _, a=arguments: a)
        )
        assert trial._tried("tried", workspace).verdict == verdict, arguments
