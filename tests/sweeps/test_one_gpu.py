"""Several runs on one GPU: MPS is started and ended with the sweep, and what does not fit is
refused.

The daemon is a script that writes down how it was called; this machine has no GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import smope
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.sweeps import one_gpu

QUICK = [
    "experiment=smoke", "backbone.image_size=8", "trainer.batch_size=64", "trainer.record=nothing",
    "method=finetune", "trainer.reference=none",
]  # fmt: skip
DAEMON = """#!/bin/sh
[ -n "$FAILS" ] && { echo "no device" >&2; exit 1; }
[ "$1" = -d ] && input= || input=$(cat)
echo "$1$input $CUDA_MPS_PIPE_DIRECTORY" >> "$CALLS"
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the daemon writes down its calls; it is first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    daemon = folder / one_gpu.CONTROL
    daemon.write_text(DAEMON)
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv(one_gpu.PIPES, raising=False)
    monkeypatch.setattr(one_gpu, "DEFAULT_PIPES", tmp_path / "none")
    return tmp_path / "calls"


def test_mps_runs_as_long_as_the_runs(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(KeyboardInterrupt), one_gpu.mps():
        folder = os.environ[one_gpu.PIPES]
        assert Path(folder).is_dir() and os.environ[one_gpu.LOGS] == folder
        assert calls.read_text() == f"-d {folder}\n"
        raise KeyboardInterrupt
    assert calls.read_text() == f"-d {folder}\nquit {folder}\n"
    assert one_gpu.PIPES not in os.environ and not Path(folder).exists()
    assert capsys.readouterr().out == "MPS was started for this sweep and ends with it\n"


def test_without_mps_the_runs_take_turns(
    calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", "yes")
    with one_gpu.mps():
        assert one_gpu.PIPES not in os.environ
    assert "MPS did not start (no device): the runs take turns" in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(calls.parent))
    with one_gpu.mps():
        assert one_gpu.PIPES not in os.environ
    assert not calls.exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize("how", ["by the user", "by the machine"])
def test_a_daemon_that_runs_already_is_left_alone(
    how: str, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "by the user":
        monkeypatch.setenv(one_gpu.PIPES, str(tmp_path))
    else:
        (tmp_path / "none").mkdir()
        (tmp_path / "none" / "control").touch()
    before = os.environ.get(one_gpu.PIPES)
    with one_gpu.mps():
        assert os.environ.get(one_gpu.PIPES) == before
    assert os.environ.get(one_gpu.PIPES) == before and not calls.exists()


def test_more_runs_than_the_memory_holds_are_refused() -> None:
    configs = [compose(read_overrides([*QUICK, "trainer.device=cpu", f"seed={n}"])) for n in (0, 1)]
    with pytest.raises(UserError, match=r"n_jobs=100000: 100000 x .* free; write hydra.*n_jobs=\d"):
        one_gpu.check_memory(configs, 100_000)
    assert one_gpu.check_memory(configs, 1).startswith("1 at once: 1 x ")


def sweep(folder: Path, *overrides: str) -> tuple[int, str]:
    root = str(Path(smope.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "smope", "train", "-m", *QUICK, *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_sweep_with_two_runs_at_once(calls: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=one_gpu", "hydra.launcher.n_jobs=2"]
    code, text = sweep(tmp_path, "seed=0,1", *launcher)
    assert code == 0, text
    assert "2 at once: 2 x " in text and "MPS was started" in text
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["-d", "quit"]
    assert len(list((tmp_path / "runs" / "smoke").glob("*/run.json"))) == 2
    code, text = sweep(tmp_path, "seed=0,1", "trainer.device=cpu", *launcher)
    assert code == 0 and "2 finished" in text and "at once" not in text
