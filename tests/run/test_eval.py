"""`smope eval`: the numbers of a finished run, measured again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from smope.cli.main import main
from smope.methods.smope import SMoPE
from smope.run import reevaluate
from smope.training.trainer import Trainer

from .small_runs import contents, record

pytestmark = pytest.mark.usefixtures("few_digits")


def test_eval_gives_the_recorded_numbers(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(quick)
    assert main(["eval", str(quick)]) == 0
    assert "equal to what the run recorded" in capsys.readouterr().out
    assert main(["eval", str(quick), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["accuracy"] == found["recorded"] == record(quick)["accuracy_matrix"][-1]
    assert contents(quick) == before


def test_eval_tells_when_the_numbers_differ(
    quick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    classify = SMoPE.classify
    monkeypatch.setattr(SMoPE, "classify", lambda self, features: -classify(self, features))
    assert main(["eval", str(quick)]) == 1
    assert re.search(
        r"the run recorded [\d. ]+, which does not agree$", capsys.readouterr().out.strip()
    )


def test_eval_on_another_set_up_allows_what_the_audit_does(
    quick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy, process = Trainer.accuracy, reevaluate.process
    images = record(quick)["tasks"][0]["test"]

    def moved(self: Trainer, index: int, seen: int) -> float:
        return accuracy(self, index, seen) - (1 / images if index == 0 else 0)

    monkeypatch.setattr(Trainer, "accuracy", moved)
    assert main(["eval", str(quick)]) == 1, "an image moved on the set-up of the run"
    monkeypatch.setattr(reevaluate, "process", lambda device: {**process(device), "torch": "1.0"})
    assert main(["eval", str(quick)]) == 0
    assert "which agrees within 0.5 % or one image, on another set-up" in capsys.readouterr().out
    assert main(["eval", str(quick), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["equal"], found["agrees"]) == (False, True)


def test_eval_wants_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such directory" in capsys.readouterr().err
    assert main(["eval", str(tmp_path)]) == 2
    assert "holds no config.yaml" in capsys.readouterr().err
