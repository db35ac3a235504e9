"""A service that fails costs no run: it is told of once, nothing is asked for, and training goes
on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smope.cli.main import main
from smope.storage.run_directory import RunDirectory
from smope.trackers.base import Guarded, Tracker
from smope.trackers.wandb import WandbTracker

pytestmark = pytest.mark.usefixtures("few_digits")

TINY = [
    "experiment=smoke",
    "backbone.image_size=8",
    "trainer.batch_size=32",
    "method=ncm",
    "trainer.device=cpu",
]


class Failing(Tracker):
    """Fails in one of its calls and counts all of them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            raise ConnectionError("nobody\nanswers")

    def start(self, *_: Any) -> None:
        self._call("start")

    def log(self, *_: Any, **__: Any) -> None:
        self._call("log")

    def finish(self, *_: Any) -> None:
        self._call("finish")


@pytest.mark.parametrize(
    ("where", "calls", "what"),
    [
        ("start", ["start"], "did not start"),
        ("log", ["start", "log"], "failed in log"),
        ("finish", ["start", "log", "log", "finish"], "failed in finish"),
    ],
)
def test_the_first_failure_is_told_and_the_last(where: str, calls: list[str], what: str) -> None:
    tracker, told = Failing(where), []
    guarded = Guarded(tracker, told.append)
    guarded.start({}, Path(), "run")
    for step in range(2):
        guarded.log({"loss": 1.0}, step=step)
    guarded.finish({}, "finished")
    assert tracker.calls == calls
    assert told == [f"no tracking: Failing {what} (nobody answers); training continues"]


def test_the_last_call_finds_the_finished_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B uploads run.json there. Methods without training steps count tasks."""
    seen: dict[str, Any] = {}

    class Last(Tracker):
        def end_task(self, matrix: Any, scores: Any, step: int) -> None:
            seen.setdefault("steps", []).append(step)

        def finish(self, scores: Any, status: str) -> None:
            seen["told"] = status
            seen["status"] = json.loads(
                (tmp_path / "run" / "run.json").read_text(encoding="utf-8")
            )["status"]

    monkeypatch.setattr("smope.trackers.base.NoTracker", Last)
    assert main(["train", *TINY, f"run_dir={tmp_path / 'run'}"]) == 0
    assert seen == {"steps": [1, 2], "told": "finished", "status": "finished"}


def test_the_last_call_comes_where_the_record_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service would otherwise continue to show the run as under way."""
    calls, write = [], RunDirectory.write_record
    monkeypatch.setattr("smope.trackers.base.NoTracker.finish", lambda _, *told: calls.append(told))

    def fill_up(self: RunDirectory, record: Any) -> None:
        if record["status"] == "finished":
            raise OSError("run.json: cannot be written")
        write(self, record)

    monkeypatch.setattr(RunDirectory, "write_record", fill_up)
    assert main(["train", *TINY, f"run_dir={tmp_path / 'run'}"]) == 1
    assert "run.json: cannot be written" in capsys.readouterr().err
    ((scores, status),) = calls
    assert scores["final_average_accuracy"] > 0
    assert status == "failed"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    monkeypatch.undo()
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0


def test_an_interruption_is_no_failure() -> None:
    class Interrupted(Tracker):
        def log(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded(Interrupted(), print).log({}, step=0)


def ignore(*_: Any, **__: Any) -> None:
    """Take anything."""


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A W&B that notes how it is started, and no key."""
    fake = SimpleNamespace(started=[], answer=lambda: SimpleNamespace(url="https://w", log=ignore))

    def init(**options: Any) -> Any:
        fake.started.append(options)
        return fake.answer()

    fake.init, fake.Settings = init, lambda **options: options
    fake.Image = fake.Table = lambda *_, **__: None
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return fake


def run_of(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Train to the end; the lines about tracking."""
    assert main(["train", *TINY, *arguments, f"run_dir={tmp_path / 'run'}"]) == 0
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["status"]
        == "finished"
    )
    return [line for line in capsys.readouterr().out.splitlines() if "tracking" in line]


def refuse_to_ask(*_: Any) -> str:
    pytest.fail("asked for something")


def test_without_a_key_nothing_is_asked(
    wandb: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("builtins.input", refuse_to_ask)
    (line,) = run_of(["tracker=wandb", "tracker.mode=online"], tmp_path, capsys)
    assert line.startswith(
        "no tracking: WandbTracker did not start (no API key: run `wandb login`, or take"
    )
    assert wandb.started == [], "W&B itself would have asked"


def test_a_service_that_cannot_be_reached(
    wandb: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable() -> None:
        raise TimeoutError("run initialization has timed out after 30.0 sec")

    wandb.answer = unreachable
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (line,) = run_of(["tracker=wandb"], tmp_path, capsys)
    assert (
        "did not start (run initialization has timed out after 30.0 sec); training continues"
        in line
    )
    assert wandb.started[0]["mode"] == "online"
    assert wandb.started[0]["settings"]["init_timeout"] == 30.0


def test_a_service_that_goes_away(
    wandb: SimpleNamespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: Any, **__: Any) -> None:
        raise BrokenPipeError("the service has gone")

    wandb.answer = lambda: SimpleNamespace(url="https://w", log=lost)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (line,) = run_of(["tracker=wandb"], tmp_path, capsys)
    assert (
        line
        == "no tracking: WandbTracker failed in end_task (the service has gone); training continues"
    )


@pytest.mark.parametrize(
    ("set_up", "mode"),
    [
        (lambda patch: None, "offline"),
        (lambda patch: patch.setenv("WANDB_API_KEY", "0" * 40), "online"),
        (lambda patch: patch.setenv("WANDB_MODE", "disabled"), "disabled"),
    ],
)
def test_the_mode_that_auto_finds(
    set_up: Callable[[pytest.MonkeyPatch], None],
    mode: str,
    wandb: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    set_up(monkeypatch)
    WandbTracker().start(
        {"method": {"_target_": "smope.methods.ncm.NCM"}, "seed": 0}, tmp_path, "name"
    )
    assert wandb.started[0]["mode"] == mode
