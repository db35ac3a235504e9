"""Which run `latest` and a folder mean, in every command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from smope.analysis.loading import find_runs
from smope.cli.main import main
from smope.errors import UserError
from smope.storage.run_directory import RunDirectory
from smope.storage.run_search import finished_run, unfinished_run
from tests.analysis.made_runs import write_run


def run_at(path: Path, age: int, **changes: Any) -> Path:
    """A run that was written `age` seconds ago."""
    write_run(path, **changes)
    now = path.stat().st_mtime
    os.utime(path / "run.json", (now - age, now - age))
    return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs whose names are not in the order in which they were written."""
    monkeypatch.chdir(tmp_path)
    run_at(Path("runs/digits/b_older"), 50)
    run_at(Path("runs/digits/a_newer"), 40)
    run_at(Path("runs/digits/c_going"), 30, status="interrupted")
    run_at(Path("runs/other/deep/d_newest"), 20)
    run_at(Path("runs/other/trial"), 10, part={"first_tasks": 1})
    return Path("runs")


def test_the_latest_of_a_folder_and_of_all(runs: Path) -> None:
    lines: list[str] = []
    assert finished_run(Path("runs/digits"), lines.append) == runs / "digits" / "a_newer"
    assert finished_run(Path("latest"), lines.append) == runs / "other/deep/d_newest"
    assert finished_run(Path("runs/other"), lines.append) == runs / "other/deep/d_newest"
    assert lines == [
        "RUN=runs/digits: runs/digits/a_newer, the latest of 2 finished runs below runs/digits/",
        "RUN=latest: runs/other/deep/d_newest, the latest of 3 finished runs below runs/",
        "RUN=runs/other: runs/other/deep/d_newest, the only finished run below runs/other/",
    ]
    assert unfinished_run(Path("latest"), lines.append) == runs / "digits" / "c_going"
    assert find_runs(["latest"]) == [runs / "other/deep/d_newest"]
    assert len(find_runs(["runs"])) == 5


@pytest.mark.parametrize("name", ["runs/digits/c_going", "runs/digits/a_newer/run.json", "gone"])
def test_a_run_a_file_and_nothing_are_meant_as_they_are(runs: Path, name: str) -> None:
    lines: list[str] = []
    assert finished_run(Path(name), lines.append) == Path(name)
    assert not lines


def test_what_is_called_latest_counts_first(runs: Path) -> None:
    run_at(Path("latest"), 90)
    assert finished_run(Path("latest"), print) == Path("latest")
    assert find_runs(["latest"]) == [Path("latest")]


def test_a_run_that_another_process_trains_is_not_resumed(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunDirectory, "holder", lambda _: "process 7 on elsewhere")
    with pytest.raises(UserError, match=r"resume=latest: no run below runs/ is unfinished; runs"):
        unfinished_run(Path("latest"), print)


def test_without_a_finished_run_those_there_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="RUN=latest: there is no run below runs/; train one"):
        finished_run(Path("latest"), print)
    run_at(Path("runs/x/going"), 1, status="running")
    (Path("runs/x/damaged")).mkdir()
    (Path("runs/x/damaged/run.json")).write_text("{")
    expected = r"no run below runs/x/ is finished; name one of runs/x/damaged, runs/x/g"
    with pytest.raises(UserError, match=expected):
        finished_run(Path("runs/x"), print)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["predict", "latest", "."], "RUN"),
        (["eval", "latest"], "RUN"),
        (["audit", "latest"], "RUN"),
        (["report", "latest"], "RUN"),
        (["collect", "latest"], "RUN"),
        (["plan", "--from", "latest"], "--from"),
        (["train", "resume=latest"], "resume"),
        (["reproduce", "paper_cifar100", "--check", "latest"], "--check RUN"),
    ],
)
def test_every_command_knows_the_word(words: list[str], key: str, mistake: Any) -> None:
    assert mistake(*words) == (
        f"smope: error: {key}=latest: there is no run below runs/; train one, or name a run"
    )


def test_commands_say_which_run_they_took(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["eval", "runs/digits"], ["audit", "runs/digits"]):
        assert main(words) == 2, "a run of which only run.json is there"
        taken = "RUN=runs/digits: runs/digits/a_newer, the latest of 2 finished runs below"
        assert taken in capsys.readouterr().err
    assert main(["train", "resume=runs/digits"]) == 2
    assert "resume=runs/digits: runs/digits/c_going, the only unfin" in capsys.readouterr().out
