"""Sweeps as users start them: killed, interrupted and repeated, they end with the table of an undisturbed one."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import smope

QUICK = [
    "experiment=smoke", "backbone.image_size=8", "trainer.batch_size=64", "trainer.record=nothing",
    "trainer.device=cpu", "trainer.checkpoint_steps=1",
]  # fmt: skip
SIX = [*QUICK, "seed=0,1,2", "method=finetune,ncm"]
TWO = [*QUICK, "seed=0,1", "method=finetune"]
PATIENCE = 240  # seconds until a test gives up on a process
HERE = Path(smope.__file__).resolve().parents[1]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "smope", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"}


def sweep(folder: Path, *overrides: str) -> tuple[int, str]:
    """Exit code and everything that a sweep prints."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        command("train", "-m", *overrides), cwd=folder, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
    )  # fmt: skip
    return done.returncode, done.stdout


def disturbed(folder: Path, disturb: Callable[[int, int], None], *overrides: str) -> tuple[int, str]:
    """A sweep; once a run of seed 1 has a checkpoint, `disturb` is called with the sweep's process id and the run's."""
    folder.mkdir(exist_ok=True)
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            command("train", "-m", *overrides), cwd=folder, env=environment(), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        disturb(process.pid, wait_for_run(folder, output))
        code = process.wait(PATIENCE)
    finally:
        process.kill()
    return code, output.read_text()


def wait_for_run(folder: Path, output: Path) -> int:
    """The process that trains fine-tuning with seed 1, once it has saved a checkpoint."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for path in folder.glob("runs/smoke/seed1*"):
            lock = path / ".lock"
            holder = re.match(r"process (\d+) ", lock.read_text()) if lock.is_file() else None
            if holder and "finetune" in (path / "config.yaml").read_text() and any(path.glob("checkpoints/*.saf*")):
                return int(holder[1])
        time.sleep(0.01)
    raise AssertionError(f"no run of seed 1 in {PATIENCE} s:\n{output.read_text()}")


def kill_run(_: int, run: int) -> None:
    os.kill(run, signal.SIGKILL)


def matrices(folder: Path) -> dict[str, Any]:
    """The accuracy matrix of each finished run, by the hash that names what it computes."""
    records = [json.loads(path.read_bytes()) for path in folder.glob("runs/smoke/*/run.json")]
    return {record["config_hash"]: record["accuracy_matrix"] for record in records if record["status"] == "finished"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs by the basic launcher."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, text = sweep(folder, *SIX)
    assert code == 0, text
    assert "6 jobs: 6 new" in text
    assert "sweep: 6 of 6 jobs finished" in text
    assert text.rstrip().endswith("the table: smope collect runs/smoke")
    assert len(matrices(folder)) == 6
    return folder


def test_a_repeat_runs_nothing(undisturbed: Path) -> None:
    code, text = sweep(undisturbed, *SIX, "trainer.num_workers=1")
    assert code == 0
    assert text.count("finished before, skipped") == 6
    assert "task 1/2" not in text


def test_the_memory_of_a_job_is_its_own(undisturbed: Path) -> None:
    """Runs alike in what they compute: those that come later took no more for what came before them."""
    records = [json.loads(path.read_bytes()) for path in undisturbed.glob("runs/smoke/*/run.json")]
    peaks = [record["cost"]["peak_memory_bytes"]["process_resident"] for record in records]
    assert max(peaks) < 1.5 * min(peaks)


def test_joblib_with_a_run_that_is_killed(undisturbed: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = [*SIX, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    code, text = disturbed(tmp_path, kill_run, *parallel)
    assert code == 1, text
    assert "sweep: 5 of 6 jobs finished" in text
    assert re.search(r"failed: seed=1 method=finetune: .*ended by SIGKILL.*; log: runs/smoke/logs/seed1-fin", text)
    code, text = sweep(tmp_path, *parallel)
    assert code == 0, text
    assert "6 jobs: " in text and "5 finished" in text and "1 stopped" in text
    assert re.search(r"seed=1 method=finetune: was killed .*, goes on", text)
    assert matrices(tmp_path) == matrices(undisturbed)
    assert not list(tmp_path.glob("runs/smoke/logs/*")), "nothing is left of a failure that was made up for"


def test_submitit_with_a_run_that_is_killed(undisturbed: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    local = [*TWO, "hydra/launcher=submitit_local"]
    code, text = disturbed(tmp_path, kill_run, *local)
    assert code == 1, text
    assert "sweep: 1 of 2 jobs finished" in text
    code, text = sweep(tmp_path, *local)
    assert code == 0, text
    assert "seed=1: was killed" in text
    theirs = matrices(undisturbed)
    assert matrices(tmp_path) == {key: theirs[key] for key in matrices(tmp_path)} and len(matrices(tmp_path)) == 2


def test_a_preempted_job_is_queued_again_and_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

    def announce(_: int, run: int) -> None:
        """What a cluster does: the signal goes to the job, which is the parent of the server that forked the run."""
        os.kill(parent_of(parent_of(run)), signal.SIGUSR2)

    code, text = disturbed(tmp_path, announce, *TWO, "hydra/launcher=submitit_local")
    assert code == 0, text
    (log,) = (path for path in tmp_path.glob("runs/smoke/.submitit/*/*_log.out") if "Requeued" in path.read_text())
    assert (
        re.search(r"Requeued job .*was interrupted after", log.read_text(), re.DOTALL) and "resuming" in log.read_text()
    )
    theirs = matrices(undisturbed)
    assert matrices(tmp_path) == {key: theirs[key] for key in matrices(tmp_path)} and len(matrices(tmp_path)) == 2


def parent_of(process: int) -> int:
    found = subprocess.run(["ps", "-o", "ppid=", "-p", str(process)], capture_output=True, text=True, check=True)
    return int(found.stdout)


def test_ctrl_c_saves_says_how_to_go_on_and_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    code, text = disturbed(tmp_path, lambda sweep, _: os.kill(sweep, signal.SIGINT), *TWO)
    assert code == 130, text
    assert "stopping: runs save a checkpoint first" in text
    assert "the same command goes on from here: smope train -m experiment=smoke" in text
    assert text.rstrip().endswith("smope: interrupted")
    code, text = sweep(tmp_path, *TWO)
    assert code == 0, text
    assert "1 finished, 1 stopped" in text and "resuming" in text
    theirs = matrices(undisturbed)
    assert matrices(tmp_path) == {key: theirs[key] for key in matrices(tmp_path)} and len(matrices(tmp_path)) == 2


def test_a_failed_run_is_named_and_the_table_has_a_gap(tmp_path: Path) -> None:
    """A job that fails before it has a run directory: its weights are no weights."""
    (tmp_path / "none.safetensors").write_text("no weights")
    overrides = [*QUICK, "method=ncm", "seed=0", "backbone.weights=embedded,none.safetensors"]
    code, text = sweep(tmp_path, *overrides)
    assert code == 1, text
    assert "sweep: 1 of 2 jobs finished" in text
    (log,) = tmp_path.glob("runs/smoke/logs/none.safetensors-*.log")
    assert "Traceback" in log.read_text() and log.read_text().rstrip().splitlines()[-1].startswith("smope: error: ")
    lines = tmp_path / "runs.csv"
    done = subprocess.run(
        command("collect", "runs/smoke", "--runs", str(lines)), cwd=tmp_path, env=environment(), text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert re.search(
        r"none\.safetensors-\w+: failed: .*none\.safetensors.*; log: .*; go on with: smope train -m", done.stdout
    )
    with lines.open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished", "failed"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_ray_with_a_run_that_is_killed(undisturbed: Path, tmp_path: Path) -> None:
    parallel = [*TWO, "hydra/launcher=ray"]
    code, text = disturbed(tmp_path, kill_run, *parallel)
    assert code == 1, text
    assert "sweep: 1 of 2 jobs finished" in text
    code, text = sweep(tmp_path, *parallel)
    assert code == 0, text
    theirs = matrices(undisturbed)
    assert matrices(tmp_path) == {key: theirs[key] for key in matrices(tmp_path)} and len(matrices(tmp_path)) == 2
