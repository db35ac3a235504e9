"""What benchmarks/gpu.py does in processes of their own: tests, and whole training runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timed_run import projection

HERE = Path(__file__).parent
CUDA_TESTS = ("test_cuda.py", "test_attention.py", "test_predict.py")

# As in results/cifar100_vit_tiny_20k.md
RUN_20K = (
    "experiment=peers_cifar100_vit_tiny",
    "backbone.weights={weights}",
    "trainer.precision=bfloat16",
    "trainer.batch_size=128",
    "trainer.epochs=20",
    "trainer.dense_epochs=10",
    "trainer.alignment_epochs=50",
    "trainer.alignment_samples_per_class=128",
    "trainer.learning_rate=5e-3",
)
RUN_TINY = (*RUN_20K, "method=smope", "stream.root={data}", "seed=0")
RUN_BASE = (
    *RUN_20K[2:],
    "stream=cifar100",
    "stream.root={data}",
    "stream.num_tasks=10",
    "backbone=sup1k",
    "backbone.weights=random",
    "method=smope",
    "router=adaptive_noise",
    "trainer=default",
    "name=vit_base",
    "seed=0",
)
TOY_RUN = (
    "experiment=smoke",
    "backbone=timm",
    "backbone.name=vit_tiny_patch16_224",
    "backbone.weights=random",
    "backbone.pixel_statistics=none",
    "backbone.image_size=32",
    "trainer.dense_epochs=0",
    "trainer.batch_size=32",
    "trainer.frozen_steps=0",
    "trainer.num_workers=0",
    "stream.validation_fraction=0.8",
)

# Rows that the pages in results/ lack and that small data sets can give, most wanted first.
MISSING_ROWS = {
    f"cifar100_vit_tiny_20k: {method}, seed 2": (
        *RUN_20K,
        f"method={method}",
        "stream.root={data_20k}",
        "trainer.num_workers=0",
        "seed=2",
    )
    for method in ("smope", "coda", "l2p")
}


@dataclass(frozen=True)
class Place:
    """Where the jobs run, and what they find there.

    toy: a rehearsal, on the CPU. folder: for runs. data: stream.root of any part of CIFAR-100.
    data_20k: that of the part with 200 training images a class. weights: the file of ViT-Ti's.
    checkout: the authors' program.
    """

    device: str
    toy: bool
    folder: Path
    data: Path | None = None
    data_20k: Path | None = None
    weights: Path | None = None
    checkout: Path | None = None


def cuda_tests(place: Place, seconds: float) -> list[dict[str, Any]]:
    """A row a file of tests: how many passed, and the names of those that failed."""
    root = HERE.parent / "tests"
    files = [file for name in CUDA_TESTS for file in sorted(root.rglob(name))]
    report = place.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-m", "not slow"]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", f"--junitxml={report}"]
    if place.toy:
        command += ["-k", "test_cuda or on_cuda"]
    else:
        command += ["-n", str(min(12, os.cpu_count() or 1))]
    child = start([*command, *map(str, files)], report.with_suffix(".log"), place, threads=1)
    finish(child, seconds)
    if not report.exists():
        output = report.with_suffix(".log").read_text(errors="replace")
        raise RuntimeError(f"the tests gave no report in {seconds:.0f} s: {output[-2000:]}")
    return tests_of(report)


def tests_of(report: Path) -> list[dict[str, Any]]:
    """The rows of a JUnit report, by file of tests."""
    rows: dict[str, dict[str, Any]] = {}
    for case in xml.parse(report).iter("testcase"):
        name = case.get("classname", "").rpartition(".")[2]
        new = {"tests": name, "passed": 0, "skipped": 0, "failed": 0, "failures": {}}
        row = rows.setdefault(name, new)
        bad = next(
            (case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None
        )
        kind = (
            "failed"
            if bad is not None
            else "skipped"
            if case.find("skipped") is not None
            else "passed"
        )
        row[kind] += 1
        if bad is not None:
            row["failures"][case.get("name", "")] = (bad.get("message") or bad.text or "")[:400]
    return list(rows.values())


def start(
    command: Sequence[str], log: Path, place: Place, threads: int | None = None
) -> subprocess.Popen[bytes]:
    """A process of its own that finds this program's packages and writes what it says into a file.

    Args:
        command: The program and its arguments, started above this folder.
        log: That file.
        place: Decoded images are cached there, and nowhere else.
        threads: Of its CPU; None for as many as it takes.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    paths = [str(HERE.parent), environment.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    environment["XDG_CACHE_HOME"] = str(place.folder / "cache")
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=HERE.parent, env=environment, stdout=file, stderr=file, process_group=0
        )


def finish(child: subprocess.Popen[bytes], seconds: float) -> int:
    """Its exit code; after so many seconds it is ended, and so are those that it has started."""
    try:
        return child.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        return child.wait()


def whole_run(overrides: Sequence[str], place: Place, seconds: float) -> list[dict[str, Any]]:
    """A row: a run's seconds by part, as far as it came, and what FULL would take at that pace."""
    return runs({"": overrides}, place, seconds)


def runs(wanted: dict[str, Sequence[str]], place: Place, seconds: float) -> list[dict[str, Any]]:
    """A row for each of some runs that go at once, as far as they came.

    Args:
        wanted: Their overrides, by name.
        place: Where they run.
        seconds: After which those that are not done are ended.
    """
    until = time.monotonic() + seconds
    folders = {
        name: place.folder / f"run_{time.time_ns()}_{index}" for index, name in enumerate(wanted)
    }
    children = {}
    for name, overrides in wanted.items():
        command = [sys.executable, str(HERE / "timed_run.py"), str(folders[name])]
        command += [*written(overrides, place), f"trainer.device={place.device}"]
        threads = 1 if place.toy else None
        children[name] = start(command, folders[name].with_suffix(".log"), place, threads)
    rows = []
    for name, child in children.items():
        code = finish(child, until - time.monotonic())
        rows.append(outcome(name, wanted[name], folders[name], code))
    if all(row["exit_code"] > 0 for row in rows):  # those that were ended have a negative one
        raise RuntimeError(rows[0]["said"])
    return rows


def written(overrides: Sequence[str], place: Place) -> list[str]:
    """The overrides with the places that they leave open filled in; in a rehearsal small ones."""
    if not place.toy:
        return [text.format(**vars(place)) for text in overrides]
    method = [text for text in overrides if text.startswith("method=")]
    return [*TOY_RUN, *(method if "ncm" in str(method) else [])]


def outcome(name: str, overrides: Sequence[str], folder: Path, code: int) -> dict[str, Any]:
    """A run's row, from what it left in its folder."""
    row: dict[str, Any] = {"run": name, "overrides": list(overrides), "exit_code": code}
    record, parts = folder / "run" / "run.json", folder / "parts.json"
    if record.exists():
        values = json.loads(record.read_text())
        names = ("status", "final_average_accuracy", "cumulative_average_accuracy", "forgetting")
        row |= {
            key: values.get(key)
            for key in (*names, "accuracy_matrix", "images_per_second", "waiting_share")
        }
        row["images"] = {
            kind: sum(task[kind] for task in values["tasks"]) for kind in ("train", "test")
        }
        row["peak_memory_bytes"] = values["cost"].get("peak_memory_bytes")
    if parts.exists():
        values = json.loads(parts.read_text())
        row |= values | {"projection": projection(values["seconds"], values["work"])}
    if code != 0:
        row["said"] = folder.with_suffix(".log").read_text(errors="replace")[-1500:]
    return row


def missing_rows(place: Place, seconds: float) -> list[dict[str, Any]]:
    """The rows of MISSING_ROWS; they share the device."""
    return runs({"rehearsed": ["method=ncm"]} if place.toy else dict(MISSING_ROWS), place, seconds)
