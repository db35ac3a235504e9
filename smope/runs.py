"""The run directory: everything a run leaves behind, and how it is written so that nothing is ever half there.

config.yaml      the resolved configuration, written first
train.log        what the run printed
metrics.csv      one row an epoch
run.json         accuracy matrix, scores, costs, versions, hashes; rewritten after each task
checkpoints/     task-NN.safetensors: everything learned or remembered after task NN
"""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from smope.errors import UserError

FORMAT_VERSION = 1
PACKAGES = (
    "smope",
    "torch",
    "torchvision",
    "timm",
    "avalanche-lib",
    "hydra-core",
    "numpy",
    "scikit-learn",
    "safetensors",
)
METRICS: tuple[str, ...] = (
    "task", "phase", "epoch", "step", "loss", "cross_entropy", "router", "prototype",
    "learning_rate", "images_per_second",
)  # fmt: skip


class RunDirectory:
    """Paths and writers of one run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.log = path / "train.log"
        self.metrics = path / "metrics.csv"
        self.record = path / "run.json"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def check_free(cls, path: Path) -> None:
        """UserError unless `path` can become a new run directory."""
        if path.exists() and not path.is_dir():
            raise UserError(f"run_dir={path}: is a file; name a directory that does not exist yet")
        if path.is_dir() and any(path.iterdir()):
            go_on = f", or continue that run with: smope train resume={path}" if cls(path).config.is_file() else ""
            raise UserError(f"run_dir={path}: is not empty, and a run overwrites nothing; name a new directory{go_on}")

    @classmethod
    def create(cls, path: Path, config_yaml: str) -> RunDirectory:
        """Make the directory and write the configuration into it."""
        cls.check_free(path)
        directory = cls(path)
        try:
            directory.checkpoints.mkdir(parents=True)
            write_atomically(directory.config, config_yaml.encode())
        except OSError as error:
            raise UserError(f"run_dir={path}: cannot be written ({error.strerror}); name another directory") from error
        return directory

    @classmethod
    def open(cls, path: Path, key: str = "RUN") -> RunDirectory:
        """An existing run directory; UserError where there is none."""
        directory = cls(path)
        if not directory.config.is_file():
            found = "no such directory" if not path.exists() else "holds no config.yaml, so it is not a run directory"
            raise UserError(f"{key}={path}: {found}; run directories are named runs/<name>/<time>")
        return directory

    def read_record(self) -> dict[str, Any]:
        return json.loads(self.record.read_text()) if self.record.is_file() else {}

    def write_record(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.record, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row to metrics.csv; columns that a method does not have stay empty, unknown losses are left out."""
        new = not self.metrics.exists()
        with self.metrics.open("a", newline="") as file:
            writer = csv.DictWriter(file, METRICS, extrasaction="ignore", restval="")
            if new:
                writer.writeheader()
            writer.writerow(row)

    def drop_metrics_from(self, task: int) -> None:
        """Forget the rows of `task` and later, which a resumed run is about to write again."""
        if not self.metrics.exists():
            return
        header, *lines = self.metrics.read_text().splitlines(keepends=True) or [""]
        kept = [line for line in lines if line.partition(",")[0].isdigit() and int(line.partition(",")[0]) < task]
        write_atomically(self.metrics, "".join([header, *kept]).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, rename: readers see the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
