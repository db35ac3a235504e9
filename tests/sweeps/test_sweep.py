"""Sweeps as users start them: killed, interrupted and repeated, they end with the table of an
undisturbed one.
"""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import smope
from smope.cli.main import main
from smope.metrics.scores import SCORES

QUICK = [
    "experiment=smoke", "backbone.image_size=8", "trainer.batch_size=64", "trainer.record=nothing",
    "trainer.device=cpu", "trainer.checkpoint_steps=5",
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


def disturbed(folder: Path, disturb: Callable[[int], None], *overrides: str) -> tuple[int, str]:
    """A sweep that something happens to while it runs; `disturb` is given its process id."""
    folder.mkdir(exist_ok=True)
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            command("train", "-m", *overrides),
            cwd=folder,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            # ignored in the background of a script
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            start_new_session=True,  # as a terminal's foreground, which Ctrl-C reaches as a whole
        )
    try:
        disturb(process.pid)
        code = process.wait(PATIENCE)
    finally:
        process.kill()
    return code, output.read_text()


def process_of(folder: Path, seed: int) -> int:
    """The process that fine-tunes with this seed, once it has saved a checkpoint."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for path in folder.glob("runs/smoke/*"):
            lock, config = path / ".lock", path / "config.yaml"
            with suppress(FileNotFoundError):  # a run that ends takes its lock with it
                holder = re.match(r"process (\d+) ", lock.read_text())
                ours = (
                    config.read_text().startswith(f"seed: {seed}\n")
                    and "methods.finetune" in config.read_text()
                )
                if holder and ours and any(path.glob("checkpoints/*.safetensors")):
                    return int(holder[1])
        time.sleep(0.01)
    raise AssertionError(
        f"no run of seed {seed} in {PATIENCE} s:\n{(folder / 'output.txt').read_text()}"
    )


def parent_of(process: int) -> int:
    found = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(process)], capture_output=True, text=True, check=True
    )
    return int(found.stdout)


def matrices(folder: Path) -> dict[str, Any]:
    """The accuracy matrix of each finished run, by the hash that names what it computes."""
    records = [json.loads(path.read_bytes()) for path in folder.glob("runs/smoke/*/run.json")]
    return {
        record["config_hash"]: record["accuracy_matrix"]
        for record in records
        if record["status"] == "finished"
    }


def collected(folder: Path) -> dict[str, list[str]]:
    """What `smope collect --runs` says that each run measured, by the hash that names what it
    computes.
    """
    lines = folder / "runs.csv"
    assert main(["collect", str(folder / "runs/smoke"), "--runs", str(lines)]) == 0
    with lines.open(newline="") as file:
        return {
            row["config_hash"]: [
                row[key] for key in ("status", "method", "seed", "tasks_done", *SCORES)
            ]
            for row in csv.DictReader(file)
        }


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
    assert code == 0, text
    assert text.count("finished before, skipped") == 6
    assert "task 1/2" not in text


def test_the_memory_of_a_job_is_its_own(undisturbed: Path) -> None:
    """Runs alike in what they compute: those that come later took no more for what came before
    them.
    """
    records = [json.loads(path.read_bytes()) for path in undisturbed.glob("runs/smoke/*/run.json")]
    peaks = [record["cost"]["peak_memory_bytes"]["process_resident"] for record in records]
    assert max(peaks) < 1.5 * min(peaks)


def equal_as_far_as_there(folder: Path, undisturbed: Path, number: int) -> None:
    ours, theirs = matrices(folder), matrices(undisturbed)
    assert len(ours) == number
    assert ours == {key: theirs[key] for key in ours}


@pytest.mark.slow
def test_joblib_with_a_run_that_is_killed(undisturbed: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    parallel = [*SIX, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    code, text = disturbed(
        tmp_path, lambda _: os.kill(process_of(tmp_path, 1), signal.SIGKILL), *parallel
    )
    assert code == 1, text
    assert "sweep: 5 of 6 jobs finished" in text
    assert re.search(
        r"failed: seed=1 method=finetune: .*ended by SIGKILL.*; log: runs/smoke/logs/seed1-fin",
        text,
    )
    code, text = sweep(tmp_path, *parallel)
    assert code == 0, text
    assert "6 jobs: " in text and "5 finished" in text and "1 stopped" in text
    assert re.search(r"seed=1 method=finetune: was killed .*, continues", text)
    assert matrices(tmp_path) == matrices(undisturbed)
    assert collected(tmp_path) == collected(undisturbed)
    assert not list(tmp_path.glob("runs/smoke/logs/*")), (
        "nothing is left of a failure that was made up for"
    )


@pytest.mark.slow
def test_submitit_with_a_run_that_is_killed_and_one_that_is_preempted(
    undisturbed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    local = [*TWO, "hydra/launcher=submitit_local"]

    def preempt() -> None:
        """The cluster's signal goes to the job, which is the parent of the server that forked the
        run.
        """
        os.kill(parent_of(parent_of(process_of(tmp_path, 0))), signal.SIGUSR2)

    def kill() -> None:
        os.kill(process_of(tmp_path, 1), signal.SIGKILL)

    def both(_: int) -> None:
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(preempt), pool.submit(kill)]:
                done.result()

    code, text = disturbed(tmp_path, both, *local)
    assert code == 1, text
    assert "sweep: 1 of 2 jobs finished" in text
    assert re.search(r"failed: seed=1: .*ended by SIGKILL", text)
    logs = [path.read_text() for path in tmp_path.glob("runs/smoke/.submitit/*/*_log.out")]
    assert any(
        re.search(r"Requeued job .*was interrupted after .*resuming in", log, re.DOTALL)
        for log in logs
    )
    code, text = sweep(tmp_path, *local)
    assert code == 0, text
    assert "seed=0: finished before" in text and "seed=1: was killed" in text
    equal_as_far_as_there(tmp_path, undisturbed, 2)


def test_ctrl_c_and_a_job_that_cannot_begin(undisturbed: Path, tmp_path: Path) -> None:
    """The first job fails before it has a run directory, the second is stopped; the same command
    knows of both.
    """
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "none.safetensors").write_text("no weights")
    overrides = [*QUICK, "method=finetune", "seed=1", "backbone.weights=none.safetensors,embedded"]
    overrides += ["hydra/launcher=joblib"]

    def press(sweep: int) -> None:
        process_of(tmp_path, 1)
        end = time.monotonic() + 20
        while time.monotonic() < end:  # until the first job has failed
            logs = tmp_path.glob("runs/smoke/logs/none.safetensors-*.log")
            if any("smope: error: " in log.read_text() for log in logs):
                break
            time.sleep(0.02)
        os.killpg(sweep, signal.SIGINT)

    code, text = disturbed(tmp_path, press, *overrides)
    assert code == 130, text
    assert "stopping: runs save a checkpoint first" in text
    assert "the same command continues from here: smope train -m experiment=smoke" in text
    assert text.rstrip().endswith("smope: interrupted")
    (log,) = tmp_path.glob("runs/smoke/logs/none.safetensors-*.log")
    assert "Traceback" in log.read_text() and log.read_text().rstrip().splitlines()[-1].startswith(
        "smope: error: "
    )
    code, text = sweep(tmp_path, *overrides)
    assert code == 1, text
    assert "2 jobs: 1 failed, 1 stopped" in text
    assert re.search(
        r"backbone\.weights=embedded: was interrupted after . of 2 tasks, continues", text
    )
    assert "sweep: 1 of 2 jobs finished" in text
    assert f"; log: {log.relative_to(tmp_path)}" in text
    equal_as_far_as_there(tmp_path, undisturbed, 1)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_ray_with_a_run_that_is_killed(undisturbed: Path, tmp_path: Path) -> None:
    parallel = [*TWO, "hydra/launcher=ray"]
    code, text = disturbed(
        tmp_path, lambda _: os.kill(process_of(tmp_path, 1), signal.SIGKILL), *parallel
    )
    assert code == 1, text
    assert "sweep: 1 of 2 jobs finished" in text
    code, text = sweep(tmp_path, *parallel)
    assert code == 0, text
    equal_as_far_as_there(tmp_path, undisturbed, 2)
