"""Broken and hostile inputs, each with the answer that it must get; input_trial.py tries them.

Every input starts from a copy of one small run, or of a folder with images, and damages one thing.
Nothing may be lost. Where training refuses a run directory, its files must not change. Where it
continues, the numbers must be those of an undamaged run.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

RUN = [
    "experiment=smoke",
    "backbone.image_size=8",
    "trainer.batch_size=64",
    "method.blocks=[0]",
    "trainer.device=cpu",
]
RUN += ["trainer.checkpoint_steps=5"]


# This folder appears if code inside a checkpoint is run.
BOMB = Path(tempfile.gettempdir()) / f"smope-bomb-{os.getpid()}"


class Skipped(Exception):
    """Why this machine cannot try an input."""


@dataclass(frozen=True)
class Workspace:
    """The files that an input may damage, and the arguments of `smope train` for them.

    Attributes:
        run: A run that was stopped in its second task.
        images: Class folders in train/ and test/.
        scratch: An empty folder.
    """

    run: Path
    images: Path
    scratch: Path

    def last(self) -> Path:
        """The last checkpoint of the run."""
        return sorted((self.run / "checkpoints").glob("*.safetensors"))[-1]

    def folder(self, *more: str) -> list[str]:
        """Arguments that train on the images, followed by `more`."""
        return [
            "stream=folder",
            f"stream.root={self.images}",
            "stream.num_tasks=2",
            *RUN[1:],
            *more,
            self.new(),
        ]

    def table(self, text: str) -> list[str]:
        """Arguments that train on a table with this text."""
        (self.images / "table.csv").write_text(text)
        return [
            "stream=table",
            f"stream.table={self.images / 'table.csv'}",
            "stream.num_tasks=2",
            *RUN[1:],
            self.new(),
        ]

    def new(self) -> str:
        """The argument that names a new run directory."""
        return f"run_dir={self.scratch / 'new'}"

    def resume(self) -> list[str]:
        """The argument that resumes the run."""
        return [f"resume={self.run}"]


# An input is a function that damages a workspace and returns the arguments of `smope train`, or a
# context manager with them. It is listed with a pattern that the answer must match, and with how
# training must end. continues: it finishes and prints what it did; stops: exit code 1 or 2 and
# one line.
Prepare = Callable[[Workspace], "list[str] | contextlib.AbstractContextManager[list[str]]"]
INPUTS: dict[str, tuple[Literal["stops", "continues"], str, Prepare]] = {}


def broken(
    name: str, ends: Literal["stops", "continues"], pattern: str
) -> Callable[[Prepare], Prepare]:
    """A decorator that lists an input.

    Args:
        name: What is broken.
        ends: How training must end.
        pattern: A regular expression that the answer must match.
    """

    def enter(prepare: Prepare) -> Prepare:
        INPUTS[name] = (ends, pattern, prepare)
        return prepare

    return enter


def _spoiled(content: Callable[[bytes], bytes]) -> Prepare:
    def prepare(workspace: Workspace) -> list[str]:
        path = workspace.last()
        path.write_bytes(content(path.read_bytes()))
        return workspace.resume()

    return prepare


class _Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(BOMB),)


def _flipped(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


BEFORE = r"renamed to .*\.unreadable, looking for the one before"
for _name, _content in {
    "checkpoint cut short": lambda content: content[: len(content) // 2],
    "checkpoint of zero bytes": lambda content: b"",
    "checkpoint with a flipped bit": _flipped,
    "checkpoint of garbage": lambda content: b"\xff" * 1000,
    "checkpoint with a header of 2^63 bytes": lambda content: (
        struct.pack("<Q", 2**63) + content[8:]
    ),
    "checkpoint that is a pickle with code": lambda content: pickle.dumps(_Bomb()),
}.items():
    broken(_name, "continues", BEFORE)(_spoiled(_content))


@broken(
    "every checkpoint damaged",
    "continues",
    r"there is no checkpoint to continue from: starting over",
)
def _(workspace: Workspace) -> list[str]:
    for path in (workspace.run / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    return workspace.resume()


@broken(
    "checkpoint of another format", "stops", r"has format version 1, this smope reads \d+; use the"
)
def _(workspace: Workspace) -> list[str]:
    for path in (workspace.run / "checkpoints").glob("*.safetensors"):
        path.write_bytes(
            path.read_bytes().replace(b'"format_version":"2"', b'"format_version":"1"')
        )
    return workspace.resume()


@broken(
    "checkpoint of another run's images",
    "stops",
    r"config\.yaml has changed since .*: seed=1 \(was 0\)",
)
def _(workspace: Workspace) -> list[str]:
    return _edited(workspace, "seed: 0", "seed: 1")


@broken("other weights under the same name", "stops", r"was trained on another backbone \(sha256")
def _(workspace: Workspace) -> list[str]:
    return _edited(workspace, "weights: embedded", "weights: random")


@broken(
    "config.yaml with another learning rate",
    "stops",
    r"has changed .*learning_rate=0\.5 \(was 0\.005\)",
)
def _(workspace: Workspace) -> list[str]:
    return _edited(workspace, "learning_rate: 0.005", "learning_rate: 0.5")


@broken("config.yaml that is no YAML", "stops", r"config\.yaml is not readable YAML")
def _(workspace: Workspace) -> list[str]:
    return _edited(workspace, "seed: 0", "seed: [")


@broken("no config.yaml", "stops", r"holds no config\.yaml, so it is not a run directory")
def _(workspace: Workspace) -> list[str]:
    (workspace.run / "config.yaml").unlink()
    return workspace.resume()


@broken("run.json cut short", "stops", r"run\.json: is damaged")
def _(workspace: Workspace) -> list[str]:
    (workspace.run / "run.json").write_text('{"status": "run')
    return workspace.resume()


@broken("metrics.csv cut short", "continues", r"resuming ")
def _(workspace: Workspace) -> list[str]:
    path = workspace.run / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-30])
    return workspace.resume()


def _edited(workspace: Workspace, old: str, new: str) -> list[str]:
    path = workspace.run / "config.yaml"
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new))
    return workspace.resume()


@broken(
    "two processes on one run directory",
    "stops",
    r"in use by process \d+ on .*; wait until it has ended",
)
@contextlib.contextmanager
def _(workspace: Workspace) -> Iterator[list[str]]:
    program = (
        "import sys; from pathlib import Path; from smope.storage.run_directory import "
        "RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).locked(): print('locked', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(workspace.run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield workspace.resume()
        holder.kill()


@contextlib.contextmanager
def small_disk(path: Path, options: str) -> Iterator[None]:
    """A file system in memory, mounted at `path`; Skipped if this machine does not allow it.

    Args:
        path: The mount point, created if needed.
        options: Options of mount, such as size=192k.
    """
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        raise Skipped(f"no file system may be mounted here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@broken("disk full while a run saves", "stops", r"cannot be written \(No space left on device\)")
@contextlib.contextmanager
def _(workspace: Workspace) -> Iterator[list[str]]:
    with small_disk(workspace.scratch / "small", "size=192k"):
        yield [*RUN, f"run_dir={workspace.scratch / 'small' / 'run'}"]


@broken(
    "run directory on a disk that is read-only",
    "stops",
    r"cannot be written \(Read-only file system\)",
)
@contextlib.contextmanager
def _(workspace: Workspace) -> Iterator[list[str]]:
    disk = workspace.scratch / "locked"
    with small_disk(disk, "size=16m"):
        shutil.copytree(workspace.run, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        yield [f"resume={disk / 'run'}"]


@broken(
    "a loss that is not finite",
    "stops",
    r"the loss became \w+ in step \d+ of task 1 .*lower trainer\.",
)
def _(workspace: Workspace) -> list[str]:
    return [*RUN, "trainer.learning_rate=1e30", "trainer.epochs=3", workspace.new()]


@broken(
    "a task smaller than a batch",
    "stops",
    r"batch_size=800 is larger than the 723 training images of task 1",
)
def _(workspace: Workspace) -> list[str]:
    return [*RUN, "trainer.batch_size=800", workspace.new()]


@broken(
    "out of memory",
    "stops",
    r"out of memory on cpu: .*start a new run with a smaller trainer\.batch_size than 64",
)
@contextlib.contextmanager
def _(workspace: Workspace) -> Iterator[list[str]]:
    problem = RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    with mock.patch("smope.training.phase.RunningPhase.step", side_effect=problem):
        yield [*RUN, workspace.new()]


@broken("a class without images", "stops", r"class folder .*train/b has no image files")
def _(workspace: Workspace) -> list[str]:
    for path in (workspace.images / "train" / "b").iterdir():
        path.unlink()
    return workspace.folder()


@broken("a class of one image", "continues", r"final average accuracy")
def _(workspace: Workspace) -> list[str]:
    for path in sorted((workspace.images / "train" / "b").iterdir())[1:]:
        path.unlink()
    return workspace.folder("trainer.batch_size=4", "trainer.frozen_steps=1")


@broken(
    "an image that is no image",
    "stops",
    r"cannot read image .*b.*: not a known image format; replace",
)
def _(workspace: Workspace) -> list[str]:
    next((workspace.images / "train" / "b").iterdir()).write_bytes(b"nothing")
    return workspace.folder()


def png(width: int, height: int) -> bytes:
    """A small PNG file whose header claims `width` times `height` pixels, all black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(1_000_000), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@broken(
    "a decompression bomb", "stops", r"cannot read image .*bomb\.png: Image size .* exceeds limit"
)
def _(workspace: Workspace) -> list[str]:
    (workspace.images / "train" / "a" / "bomb.png").write_bytes(png(60_000, 60_000))
    return workspace.folder()


@broken(
    "an image that becomes unreadable",
    "stops",
    r"cannot read image .*: not a known image format; replace",
)
@contextlib.contextmanager
def _(workspace: Workspace) -> Iterator[list[str]]:
    from smope.training.phase import RunningPhase

    step = RunningPhase.step

    def spoil(self: RunningPhase, *batch: Any) -> None:
        for path in (workspace.images / "train").rglob("*.png"):
            path.write_bytes(b"gone")
        step(self, *batch)

    with (
        mock.patch("smope.streams.pixels.preload.MEMORY_LIMIT_BYTES", 0),
        mock.patch.object(RunningPhase, "step", spoil),
    ):
        yield workspace.folder(
            "stream.cache_gb=0", "trainer.batch_size=4", "trainer.frozen_steps=1"
        )


@broken(
    "a path that leads out of its folder",
    "stops",
    r"line 2: path \.\./\.\./secret\.png leads out of",
)
def _(workspace: Workspace) -> list[str]:
    return workspace.table("path,label\n../../secret.png,a\n")


@broken("an absolute path in a table", "stops", r"line 2: path /etc/passwd leads out of")
def _(workspace: Workspace) -> list[str]:
    return workspace.table("path,label\n/etc/passwd,a\n")


@broken("a table of binary data", "stops", r"is not UTF-8 text|must name columns")
def _(workspace: Workspace) -> list[str]:
    arguments = workspace.table("")
    (workspace.images / "table.csv").write_bytes(bytes(range(256)) * 100)
    return arguments


@broken(
    "labels out of range", "stops", r"train has 101 different class ids instead of each of 0 to 99"
)
def _(workspace: Workspace) -> list[str]:
    import numpy

    root = workspace.scratch / "cifar-100-python"
    root.mkdir()
    (root / "meta").write_bytes(
        pickle.dumps({"fine_label_names": [f"class {number}" for number in range(100)]})
    )
    for split, labels in (("train", [*range(100), 100]), ("test", list(range(100)))):
        table = {"data": numpy.zeros((len(labels), 3072), numpy.uint8), "fine_labels": labels}
        (root / split).write_bytes(pickle.dumps(table))
    return ["stream=cifar100", f"stream.root={workspace.scratch}", *RUN[1:], workspace.new()]


@broken(
    "an archive whose names lead out of it", "stops", r"which would be written outside its folder"
)
@contextlib.contextmanager
def _(workspace: Workspace) -> Iterator[list[str]]:
    import tarfile

    from smope.streams import cifar100

    root = workspace.scratch / "root"
    root.mkdir()
    with tarfile.open(root / cifar100.DATASET.archive.filename, "w:gz") as whole:
        whole.addfile(tarfile.TarInfo("../../evil"), io.BytesIO())
    with mock.patch("smope.streams.archives.download._check"):  # which would refuse it for its md5
        yield [
            "stream=cifar100",
            f"stream.root={root}",
            "stream.download=true",
            *RUN[1:],
            workspace.new(),
        ]


for _override, _rule in {
    "method.num_experts=1000000000": r"method\.num_experts must be at least 1 and at most 100000, "
    r"got 1000000000",
    "method.num_experts=-1": r"method\.num_experts must be at least 1",
    "trainer.learning_rate=inf": r"trainer\.learning_rate must be a finite number above 0, got inf",
    "trainer.learning_rate=nan": r"trainer\.learning_rate must be a finite number above 0, got nan",
    "router.epsilon=-1": r"router\.epsilon must be a finite number, 0 or more, got -1",
    "trainer.batch_size=1000000000": r"batch_size=1000000000 is larger than the 723 training "
    r"images",
    "stream.num_tasks=1000000000": r"stream\.num_tasks must be in 1\.\.10",
    "trainer.num_workers=1000000000": r"trainer\.num_workers must be at least 0 and at most 256",
    "method.blocks=[1000000000]": r"method\.blocks must be different numbers in 0\.\.7",
    "router.topk=3": r"unknown key router\.topk=3; did you mean router\.top_k",
}.items():
    broken(_override, "stops", _rule)(
        lambda workspace, override=_override: [*RUN, override, workspace.new()]
    )


@broken(
    "W&B without a key",
    "continues",
    r"no tracking: WandbTracker did not start \(no API key: run `wandb login`",
)
@contextlib.contextmanager
def _(workspace: Workspace) -> Iterator[list[str]]:
    with mock.patch.dict(os.environ, {"NETRC": str(workspace.scratch / "none")}):
        os.environ.pop("WANDB_API_KEY", None)
        yield [*RUN, "tracker=wandb", "tracker.mode=online", workspace.new()]


@broken(
    "W&B that cannot be reached",
    "continues",
    r"no tracking: WandbTracker did not start \(.*\); training continues",
)
@contextlib.contextmanager
def _(workspace: Workspace) -> Iterator[list[str]]:
    nobody = {
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_MODE": "online",
    }
    with mock.patch.dict(os.environ, nobody), mock.patch("smope.trackers.wandb.INIT_SECONDS", 5.0):
        yield [*RUN, "tracker=wandb", workspace.new()]
