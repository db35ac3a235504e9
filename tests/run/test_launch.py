"""How a run was started is recorded, and nothing of it can make a run fail."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import smope
from smope.cli.main import main
from smope.storage.launch import launch_facts, launched_by
from smope.storage.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("few_digits")

TINY = ("experiment=smoke", "method=ncm", "backbone.image_size=8", "stream.num_tasks=2")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.check_output(command, text=True).strip()


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_the_commit_of_the_repository_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert launch_facts()["git"] is None, "not a repository"
    git(tmp_path, "init", "-q", "-b", "trunk")
    assert launch_facts()["git"] is None, "no commit yet"
    (tmp_path / "code.py").write_text("a = 1\n", encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "new.txt").write_text("not tracked", encoding="utf-8")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert launch_facts()["git"] == {"commit": commit, "branch": "trunk", "changed": False}
    (tmp_path / "code.py").write_text("a = 2\n", encoding="utf-8")
    assert launch_facts()["git"]["changed"] is True


def test_nothing_of_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch_facts()["git"] is None, "without git"
    lost = tmp_path / "lost"
    lost.mkdir()
    monkeypatch.chdir(lost)
    lost.rmdir()
    facts = launch_facts()
    assert facts["directory"] is None and facts["git"] is None


def test_commands_nest_and_end() -> None:
    before = launch_facts()["command"]
    with launched_by("outer"):
        with launched_by("inner"):
            assert launch_facts()["command"] == "inner"
        assert launch_facts()["command"] == "outer"
    assert launch_facts()["command"] == before


def test_a_run_records_its_command_as_typed(tmp_path: Path) -> None:
    run_dir = tmp_path / "a run"
    assert main(["train", *TINY, f"run_dir={run_dir}"]) == 0
    record = RunDirectory(run_dir).read_record()
    (launch,) = record["launches"]
    assert launch["command"] == f"smope train {' '.join(TINY)} 'run_dir={run_dir}'"
    assert launch["directory"] == os.getcwd()
    assert launch["time"].endswith("+00:00")
    assert record["device_name"] == "cpu"


def test_a_call_from_python_is_recorded_as_one(tmp_path: Path) -> None:
    record = smope.train(*TINY, f"run_dir={tmp_path / 'run'}")
    assert record["launches"][0]["command"].startswith("smope.train('experiment=smoke', 'method=")
