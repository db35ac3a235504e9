"""Two processes under torchrun: stopped together, one message, and continued by one process to the
same numbers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smope.cli.main import main
from smope.distributed import torchrun
from smope.errors import UserError
from smope.training import device
from tests.two_processes import ROOT

RUN = [
    "experiment=smoke",
    "method=finetune",
    "backbone.image_size=8",
    "trainer.batch_size=65",
    "trainer.epochs=3",
    "trainer.precision=float64",
    "trainer.device=cpu",
    "trainer.alignment_epochs=2",
    "method.align=true",
]


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have this process believe that it is number `rank` of two."""
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return lambda rank: monkeypatch.setenv("RANK", str(rank))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whether this process is the first to fail."""
    return lambda first: monkeypatch.setattr(torchrun, "first_to_fail", lambda: first)


def interrupted(run_dir: Path) -> subprocess.CompletedProcess[str]:
    """A run of two processes that gets Ctrl-C after its first epoch."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "smope",
        "train",
        *RUN,
    ]
    process = subprocess.Popen(
        [*command, f"run_dir={run_dir}"],
        cwd=run_dir.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "epoch 1/3" in line:
                process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines), errors)


@pytest.mark.slow
def test_two_stop_together_and_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    stopped = interrupted(run_dir)
    said = stopped.stdout + stopped.stderr
    assert stopped.returncode != 0
    assert "digits: 10 classes in 2 tasks, seed 0, cpu, 2 processes\n" in said
    assert said.count("smope: interrupted") == 1, said
    assert said.count("stopping after this step") <= 1
    assert said.count("stopped; continue with: smope train") == 1
    record = json.loads((run_dir / "run.json").read_text())
    assert (record["status"], record["world_size"]) == ("interrupted", 2)
    assert main(["train", f"resume={run_dir}"]) == 0
    out = capsys.readouterr().out
    assert "resuming in task 1 after " in out
    assert "processes 1 (was 2)" in out
    assert main(["train", *RUN, f"run_dir={whole}"]) == 0
    records = [json.loads((path / "run.json").read_text()) for path in (run_dir, whole)]
    assert records[0]["accuracy_matrix"] == records[1]["accuracy_matrix"]
    assert records[0]["config_hash"] == records[1]["config_hash"]
    ours, theirs = (
        load_file(sorted((path / "checkpoints").iterdir())[-1]) for path in (run_dir, whole)
    )
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-9, msg=key)


def test_only_training_takes_more_than_one(
    two: Any, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told(True)
    assert main(["methods"]) == 2
    assert (
        "`smope methods` works in one process; start it without torchrun" in capsys.readouterr().err
    )
    assert main(["train", "-m", "seed=0,1"]) == 2
    assert (
        "-m starts runs one after the other, torchrun processes of one" in capsys.readouterr().err
    )


def test_one_process_tells_of_an_error(
    two: Any, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told(False)
    assert main(["train", "router.top_kk=3"]) == 2
    assert capsys.readouterr().err == ""


def test_only_the_first_process_looks_at_the_directory(two: Any, told: Any, tmp_path: Path) -> None:
    """The others may find what it has begun already."""
    from smope.config.hydra import compose
    from smope.config.overrides import read_overrides
    from smope.run.plan import new_run_dir

    (tmp_path / "file").touch()
    config = compose(read_overrides([f"run_dir={tmp_path}"]))
    with pytest.raises(UserError, match="is not empty"):
        new_run_dir(config)
    two(1)
    assert new_run_dir(config) == tmp_path


def test_each_process_has_a_device_of_its_own(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.resolve_device("auto") == device.resolve_device("cuda") == torch.device("cuda", 1)
    assert device.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(
        UserError, match=r"trainer.device=cuda:0: each of 2 processes needs a device of its own"
    ):
        device.resolve_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        UserError, match=r"process 1 of this machine has no CUDA device, there are 1; start as many"
    ):
        device.resolve_device("auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device.resolve_device("auto") == torch.device("cpu")


def test_without_all_that_torchrun_sets_there_is_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Schedulers set some of it for purposes of their own."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert (torchrun.world_size(), torchrun.rank(), torchrun.local_rank()) == (1, 0, 0)
