"""What the world does to a run: disks that are full or read-only, other processes, files that
break, no memory left.

Each time the answer is one line that names the matter, and what was there before is there
afterwards.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy
import pytest
import torch
from PIL import Image

import smope
from smope.cli.main import main
from smope.methods.finetune import Finetune
from smope.methods.smope import SMoPE
from smope.run import artefact
from smope.storage import run_directory
from smope.storage.run_directory import RunDirectory
from smope.training import checkpoint as checkpoints
from smope.training.phase import RunningPhase
from tests.disks import disk, remount

pytestmark = pytest.mark.usefixtures("few_digits")

QUICK = [
    "experiment=smoke",
    "backbone.image_size=8",
    "trainer.batch_size=32",
    "method=finetune",
    "trainer.device=cpu",
    "trainer.checkpoint_steps=2",
    "trainer.frozen_steps=1",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("hostile") / "whole"
    assert main(["train", *QUICK, f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, stopped in its second task."""
    run_dir = tmp_path_factory.mktemp("hostile") / "stopped"
    with in_step(1, 3, lambda: (_ for _ in ()).throw(KeyboardInterrupt)):
        assert main(["train", *QUICK, f"run_dir={run_dir}"]) == 130
    return run_dir


@contextmanager
def in_step(task: int, step: int, action: Callable[[], object]) -> Iterator[None]:
    """Do something at the beginning of one training step."""
    real = RunningPhase.step

    def spoiled(self: RunningPhase, *batch: Any) -> None:
        if (self.span.index, self.done) == (task, step):
            action()
        real(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunningPhase, "step", spoiled)
        yield


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))


def contents(run_dir: Path) -> dict[str, str]:
    files = [path for path in run_dir.rglob("*") if path.is_file() and path.name != ".lock"]
    return {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one line on stderr with which a command ends."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("smope: error: ")
    return lines[0]


def goes_on(run_dir: Path, whole: Path) -> None:
    """Resumed, the run ends with the numbers of one that nothing happened to."""
    assert main(["train", f"resume={run_dir}"]) == 0
    assert record(run_dir)["status"] == "finished"
    assert record(run_dir)["accuracy_matrix"] == record(whole)["accuracy_matrix"]
    assert not list(run_dir.rglob(".*.tmp"))


def full(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room for two checkpoints and not for the third: they stay, and with more room the run goes
    on from them.
    """
    size = sum(path.stat().st_size for path in (whole / "checkpoints").iterdir()) // 1024 + 24
    with disk(tmp_path / "small", f"{size}k") as small:
        run_dir = small / "run"
        line = refused(capsys, 1, "train", *QUICK, f"run_dir={run_dir}")
        assert "No space left on device" in line
        assert str(run_dir) in line
        kept = checkpoints.list_checkpoints(RunDirectory(run_dir))
        assert kept
        assert all(checkpoints.read_checkpoint(path) for path in kept)
        remount(small, "size=16m")
        goes_on(run_dir, whole)


@pytest.mark.parametrize("where", ["save", "metrics", "record", "model"])
def test_a_disk_that_fills_up(
    where: str,
    tmp_path: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same without a mount, at each place where a run writes."""
    run_dir = tmp_path / "run"

    def fill() -> None:
        if where == "save":
            monkeypatch.setattr(checkpoints, "write_atomically", full)
        elif where == "metrics":
            monkeypatch.setattr(run_directory.csv, "DictWriter", full)
        elif where == "model":
            monkeypatch.setattr(artefact, "write_together", full)
        else:
            monkeypatch.setattr(run_directory, "write_atomically", full)

    with in_step(1, 3, fill):
        line = refused(capsys, 1, "train", *QUICK, f"run_dir={run_dir}")
    names = {
        "save": r"checkpoint .*001-0000\d+\.safetensors",
        "metrics": r".*metrics\.csv",
        "record": r".*run\.json",
        "model": r".*model\.safetensors",
    }
    assert re.search(rf"{names[where]}: cannot be written \(No space left on device\)", line)
    monkeypatch.undo()
    goes_on(run_dir, whole)


def test_a_disk_that_is_read_only(
    tmp_path: Path, stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with disk(tmp_path / "locked", "16m") as locked:
        run_dir = Path(shutil.copytree(stopped, locked / "run"))
        remount(locked, "ro")
        before = contents(run_dir)
        line = refused(capsys, 2, "train", f"resume={run_dir}")
        assert (
            f"run_dir={run_dir}: cannot be written (Read-only file system); make it writable"
            in line
        )
        line = refused(capsys, 2, "train", *QUICK, f"run_dir={locked / 'new'}")
        assert "cannot be written (Read-only file system); name another directory" in line
        assert contents(run_dir) == before
        remount(locked, "rw")
        goes_on(run_dir, whole)


def test_a_directory_that_may_not_be_written(
    tmp_path: Path,
    stopped: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same without a mount, as for a user without the right."""
    run_dir = Path(shutil.copytree(stopped, tmp_path / "run"))
    before, opened, made = contents(run_dir), Path.open, Path.mkdir

    def read_only(real: Any) -> Any:
        def call(self: Path, *arguments: Any, **options: Any) -> Any:
            writes = real is made or (arguments and arguments[0] not in ("r", "rb"))
            if writes and self.is_relative_to(tmp_path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
            return real(self, *arguments, **options)

        return call

    monkeypatch.setattr(Path, "open", read_only(opened))
    monkeypatch.setattr(Path, "mkdir", read_only(made))
    line = refused(capsys, 2, "train", f"resume={run_dir}")
    assert f"run_dir={run_dir}: cannot be written (Permission denied); make it writable" in line
    line = refused(capsys, 2, "train", *QUICK, f"run_dir={tmp_path / 'new'}")
    assert "cannot be written (Permission denied); name another directory" in line
    assert contents(run_dir) == before


HOLDER = """
import sys
from pathlib import Path
from smope.storage.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_processes_on_one_run(
    tmp_path: Path, stopped: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused at once, and the lock dies with its holder, however that ends."""
    run_dir = Path(shutil.copytree(stopped, tmp_path / "run"))
    environment = {**os.environ, "PYTHONPATH": str(Path(smope.__file__).parents[1])}
    command = [sys.executable, "-c", HOLDER, str(run_dir)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        before = contents(run_dir)
        line = refused(capsys, 2, "train", f"resume={run_dir}")
        assert re.search(
            rf"run_dir=.*: in use by process {holder.pid} on .*; wait until it has ended, or name",
            line,
        )
        assert contents(run_dir) == before
        holder.kill()
    assert (run_dir / ".lock").exists(), "what a killed process leaves"
    goes_on(run_dir, whole)


def pictures(root: Path, train: dict[str, int]) -> Path:
    """Class folders with so many training images of 8 pixels, and two test images each."""
    draw = numpy.random.default_rng(0)
    for name, count in train.items():
        for split, number in (("train", count), ("test", 2)):
            (root / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def on_folder(root: Path, run_dir: Path, *more: str, batch: int = 4) -> list[str]:
    """A training on class folders that takes a second."""
    small = [f"trainer.batch_size={batch}", "trainer.frozen_steps=0"]
    stream = ["stream=folder", f"stream.root={root}", "stream.num_tasks=2"]
    return [*QUICK[:2], "trainer.device=cpu", *stream, *small, *more, f"run_dir={run_dir}"]


def test_an_image_that_becomes_unreadable_mid_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in memory nor in a cache.

    The state is saved; once the file is back, the run continues.
    """
    monkeypatch.setattr("smope.streams.pixels.preload.MEMORY_LIMIT_BYTES", 0)
    root = pictures(tmp_path / "images", dict.fromkeys("abcd", 8))
    assert main(["train", *on_folder(root, tmp_path / "whole", "stream.cache_gb=0")]) == 0
    victims = {path: path.read_bytes() for path in (root / "train").rglob("*.png")}
    with in_step(1, 1, lambda: [path.write_bytes(b"gone") for path in victims]):
        line = refused(capsys, 2, "train", *on_folder(root, tmp_path / "run", "stream.cache_gb=0"))
    assert re.search(
        r"cannot read image .*images/train/./\d\.png: not a known image format; replace the file",
        line,
    )
    assert record(tmp_path / "run")["status"] == "failed"
    for path, content in victims.items():
        path.write_bytes(content)
    goes_on(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("method", ["smope", "finetune", "ncm"])
def test_a_class_of_one_image(method: str, tmp_path: Path) -> None:
    """It has no variance and is in no whole batch, perhaps; training and alignment go through,
    without NaN.
    """
    root = pictures(tmp_path / "images", {"a": 8, "b": 1, "c": 8, "d": 1})
    own = {
        "smope": ["method.blocks=[0]", "method.num_experts=6"],
        "finetune": ["method.align=true"],
        "ncm": [],
    }
    assert (
        main(
            ["train", *on_folder(root, tmp_path / "run", f"method={method}", *own[method], batch=2)]
        )
        == 0
    )
    state = checkpoints.read_checkpoint(
        checkpoints.list_checkpoints(RunDirectory(tmp_path / "run"))[-1]
    ).state
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_class_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = pictures(tmp_path / "images", {"a": 8, "b": 0, "c": 8, "d": 8})
    line = refused(capsys, 2, "train", *on_folder(root, tmp_path / "run"))
    assert re.search(
        r"class folder .*images/train/b has no image files .*; add images or remove the class", line
    )
    assert not (tmp_path / "run").exists()


def no_memory(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes"
    )


def test_no_memory_for_a_training_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Finetune.losses
    monkeypatch.setattr(
        Finetune,
        "losses",
        lambda self, x, *rest: no_memory() if len(x) > 1 else losses(self, x, *rest),
    )
    line = refused(capsys, 1, "train", *QUICK, f"run_dir={tmp_path / 'run'}")
    assert (
        "out of memory on cpu: continue with trainer.activation_checkpointing=true, with "
        "trainer.gradient_" in line
    )
    assert "accumulation_steps=2, start a new run with a smaller trainer.batch_size than 32" in line


def test_no_memory_to_evaluate(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Finetune,
        "classify",
        lambda self, x: no_memory() if not self.training and len(x) > 1 else self.classifier(x),
    )
    line = refused(capsys, 1, "train", *QUICK, f"run_dir={tmp_path / 'run'}")
    assert "out of memory on cpu: continue with a smaller trainer.eval_batch_size than 128" in line
    monkeypatch.undo()
    assert main(["train", f"resume={tmp_path / 'run'}", "trainer.eval_batch_size=16"]) == 0
    assert "now with trainer.eval_batch_size=16 (was 128)" in capsys.readouterr().out
    assert record(tmp_path / "run")["accuracy_matrix"] == record(whole)["accuracy_matrix"]


def test_no_memory_for_the_experts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SMoPE, "__init__", no_memory)
    line = refused(capsys, 1, "train", *QUICK, "method=smope", f"run_dir={tmp_path / 'run'}")
    assert "out of memory before training: " in line
    assert "method.num_experts" in line
    assert not (tmp_path / "run").exists()
