"""benchmarks/gpu.py on the CPU: every stage, small, and what it does when time or luck runs out."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from smope.config.hydra import compose
from smope.config.overrides import read_overrides

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def found_by_name() -> Iterator[None]:
    if not FOLDER.is_dir():
        pytest.skip("installed without the benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a rehearsal, in its own process: compiling is slow where pytest listens."""
    file = tmp_path_factory.mktemp("gpu") / "results.jsonl"
    command = [sys.executable, str(FOLDER / "gpu.py"), "--rehearse", "--out", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    subprocess.run(command, check=True, env=environment)
    return file


def lines(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The results by stage."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, file.read_text().splitlines()):
        found.setdefault(line["stage"], []).append(line)
    return found


@pytest.mark.slow
def test_every_stage_is_rehearsed(rehearsed: Path) -> None:
    found = lines(rehearsed)
    assert list(found) == ["machine", "tests", "speed", "profile", "run", "images", "accuracy"]
    assert not [line["error"] for stage in found.values() for line in stage if "error" in line]
    assert sum(row["failed"] for row in found["tests"][0]["rows"]) == 0
    [train, infer, compiled, graphs] = found["speed"]
    assert [row["variant"] for row in train["rows"]] == [
        *("plain", "smope", "smope", "smope_plus", "plain_held", "smope_cast")
    ]
    assert all(
        row["images_per_second"] > 0 and row["kernels"] > 0
        for line in (train, infer, compiled, graphs)
        for row in line["rows"]
    )
    beside = [row.get("ratio_to_plain_compiled") for row in compiled["rows"]]
    assert beside[:3] == [None, None, 1.0] and beside[3] > 0
    assert graphs["rows"][-1]["variant"] == "smope_graphs_compiled"
    assert all(row["operations"] > 0 for row in graphs["rows"])
    assert all(len(row["dearest"]) == 10 for row in found["profile"][0]["rows"])
    [run] = found["run"][0]["rows"]
    assert run["exit_code"] == 0, run["said"]
    assert run["status"] == "finished" and run["tasks"] == run["work"]["tasks_done"] == 2
    assert run["projection"]["whole"] > run["whole"]
    ways = [(row["pictures"], row["way"]) for row in found["images"][0]["rows"]]
    assert len(ways) == 4 and all(row["seconds"] > 0 for row in found["images"][0]["rows"])
    assert found["accuracy"][0]["rows"][0]["final_average_accuracy"] > 0.3


@pytest.mark.slow
def test_what_the_file_holds_is_not_done_again(
    rehearsed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(rehearsed.read_text().splitlines())
    load("gpu").main(["--rehearse", "--only", "speed", "run", "--out", str(rehearsed)])
    assert capsys.readouterr().out.count("is in the file") == 5
    assert len(rehearsed.read_text().splitlines()) == before + 1, "where it was tried"


@pytest.mark.slow
def test_the_tables(rehearsed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("gpu").main(["--table", str(rehearsed)])
    text = capsys.readouterr().out
    for head in (
        "## Tests",
        "### ViT-B bfloat16 train\n",
        "| dearest kernels |",
        "| alignment |",
        "| on the device |",
    ):
        assert head in text
    assert "| rehearsed | finished | 2 |" in text


def place(tmp_path: Path, **changes: Any) -> Any:
    return load("gpu_runs").Place("cpu", False, tmp_path, **changes)


def job(stage: str, name: str, rows: Any, estimate: float = 1.0, needs: Sequence[str] = ()) -> Any:
    """A job that gives `rows`, or raises them."""

    def run(place: Any, seconds: float) -> Any:
        if isinstance(rows, Exception):
            raise rows
        return rows

    return load("gpu_jobs").Job(stage, name, estimate, run, tuple(needs))


def test_a_failure_is_a_line_and_the_next_job_is_done(tmp_path: Path) -> None:
    gpu = load("gpu")
    results = gpu.Results(tmp_path / "results.jsonl")
    jobs = [job("speed", "a", ValueError("no such kernel")), job("tests", "b", [])]
    gpu.work(jobs, place(tmp_path), results, time.monotonic() + 60)
    [_, failed, done] = results.lines()
    assert "Traceback" in failed["error"] and failed["error"].endswith("no such kernel\n")
    assert done["rows"] == [] and results.held() >= {("speed", "a"), ("tests", "b")}
    assert "- a: ValueError: no such kernel" in gpu.tables(results.lines())


def test_a_job_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, jobs = load("gpu"), load("gpu_jobs")
    monkeypatch.setitem(gpu.MOST, "tests", 0.1)
    monkeypatch.setattr(gpu, "SPARE", 0.2)
    results = gpu.Results(tmp_path / "results.jsonl")
    hanging = jobs.Job("tests", "a", 0.1, lambda place, seconds: time.sleep(60))
    gpu.work([hanging], place(tmp_path), results, time.monotonic() + 60)
    assert "TimeoutError: not done in" in results.lines()[1]["error"]


def test_what_cannot_be_compiled_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, measuring = load("gpu_jobs"), load("measuring")
    build = measuring.build

    def fails(setting: Any, variant: Any, checkout: Any = None) -> Any:
        if variant.variant == "smope_compiled":
            raise RuntimeError("no graph")
        return build(setting, variant, checkout)

    monkeypatch.setattr(measuring, "build", fails)
    where = replace(place(tmp_path), toy=True)
    variants = [jobs.PLAIN, jobs.SPARSE, jobs.COMPILED]
    rows = jobs.speed(measuring.Setting(jobs.TINY, 2), variants, where, 1)
    assert [row["variant"] for row in rows] == ["plain", "smope"]
    assert rows[0]["left_out"].endswith("RuntimeError: no graph\n")
    line = {"stage": "speed", "name": "a", "rows": rows}
    assert "Not all could be measured: RuntimeError: no graph" in load("gpu").tables([line])


def test_nothing_is_begun_that_would_not_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = load("gpu")
    results = gpu.Results(tmp_path / "results.jsonl")
    jobs = [
        job("speed", "long", [], estimate=100),
        job("run", "bare", [], needs=["data_20k"]),
        job("speed", "short", [], estimate=2),
    ]
    gpu.work(jobs, place(tmp_path), results, time.monotonic() + 20)
    assert [line["name"] for line in results.lines()[1:]] == ["short"]
    said = capsys.readouterr().out
    assert "long: left out: 15 s left, it takes 100" in said or "long: left out: 14 s" in said
    assert "bare: needs --data-20k" in said


def test_a_line_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text('{"stage": "speed", "name": "a", "rows": []}\n{"stage": "spe')
    results = load("gpu").Results(file)
    results.add({"stage": "run", "name": "b"})
    assert results.held() == {("speed", "a"), ("run", "b")}


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    load("gpu").main(["--list"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names[0] == "tests" and set(names) == {
        "tests",
        "speed",
        "profile",
        "run",
        "images",
        "accuracy",
    }


def test_overrides_of_the_runs_are_known(tmp_path: Path) -> None:
    """A configuration refuses keys and values that it does not know."""
    runs = load("gpu_runs")
    (tmp_path / "file").touch()
    where = place(tmp_path, data=tmp_path, data_20k=tmp_path, weights=tmp_path / "file")
    for overrides in (runs.RUN_TINY, runs.RUN_BASE, *runs.MISSING_ROWS.values()):
        config = compose(read_overrides(runs.written(overrides, where)))
        assert config.trainer["batch_size"] == 128 and config.stream["root"] == str(tmp_path)


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    runs = load("gpu_runs")
    waiting = [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(60)"]
    log = tmp_path / "run.log"
    child = runs.start(waiting, log, place(tmp_path))
    code = runs.finish(child, 2)
    assert code < 0
    row = runs.outcome("a", ["seed=0"], log.with_suffix(""), code)
    assert row["said"].startswith("begun") and "seconds" not in row
    assert "No task was finished: begun" in load("gpu_tables")._run(row)


def test_kernels_of_a_trace() -> None:
    """As a CUDA device gives it: kernels know by a number which operator launched them."""
    kernels = load("kernels")
    launched = [
        (1, "aten::_to_copy", "elementwise_kernel", 0, 10),
        (2, "aten::mm", "nvjet_tst", 20, 20),
    ]
    events = [
        {"cat": "cpu_op", "name": operator, "ph": "X", "args": {"External id": number}}
        for number, operator, *_ in launched
    ]
    for number, _, name, start, length in [*launched, (9, "", "Memset", 35, 10)]:
        args = {"External id": number}
        kernel = {
            "cat": "kernel",
            "name": name,
            "ph": "X",
            "ts": start,
            "dur": length,
            "args": args,
        }
        events.append(kernel)
    events.append({"cat": "gpu_user_annotation", "name": "step", "ph": "X", "ts": 0, "dur": 99})
    found = kernels._kernels(events, "cuda")
    assert [kernel.kind for kernel in found] == ["copies and casts", "matrix products", "fills"]
    assert kernels.busy(found) == pytest.approx(35e-6)


def test_the_projection() -> None:
    timed = load("timed_run")
    work = timed.full_work()
    assert work["steps"] == 210 * 39 and work["test_images"] == 55_000
    seconds = {
        "training": 30.0,
        "waiting": 10.0,
        "usage": 1.0,
        "statistics": 2.0,
        "alignment": 3.0,
        "evaluation": 4.0,
    }
    same = timed.projection(seconds, work)
    assert same["whole"] == pytest.approx(40.0) and same["computing"] == pytest.approx(20.0)
    half = timed.projection(seconds, {name: count // 2 for name, count in work.items()})
    assert half["evaluation"] == pytest.approx(8.0)
    first = timed.projection(seconds, {**work, "alignment_batches": 0})
    assert first["alignment"] is None and first["whole"] is None


def test_the_tests_by_file(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.contracts.test_cuda" name="a"/>'
        '<testcase classname="tests.contracts.test_cuda" name="b"><failure message="1 != 2"/>'
        '</testcase><testcase classname="tests.test_predict" name="c"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    [cuda, predict] = load("gpu_runs").tests_of(report)
    assert (cuda["passed"], cuda["failed"], cuda["failures"]) == (1, 1, {"b": "1 != 2"})
    assert (predict["passed"], predict["skipped"]) == (0, 1)


def test_the_peak_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = load("gpu_jobs")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert jobs.peak_of("bfloat16")["peak_tflops"] == 989
    assert jobs.peak_of("float32") == {"peak_of": "float32, no tensor cores", "peak_tflops": 67}
    monkeypatch.setattr(jobs, "float32_precision", lambda: "tf32")
    assert jobs.peak_of("float32")["peak_tflops"] == 495


def test_measured_one_after_the_other() -> None:
    measuring = load("measuring")
    calls: list[int] = []
    setting = measuring.Setting("any", 1)
    measuring.timed(lambda: calls.append(1), replace(setting, steps=3))
    assert len(calls) == 3


def test_a_smaller_cifar(tmp_path: Path) -> None:
    """Fewer images of each class, with the pixels and the names of the source."""
    small = load("small_cifar")
    cells = []
    for index in range(6):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (40 * index, 9, 7)).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"img": pyarrow.array(cells, kind), "fine_label": pyarrow.array([0, 1] * 3)}
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": "{}"})
    parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    small.main([str(tmp_path), str(tmp_path / "new"), "--train", "0", "--test", "2"])
    found = parquet.read_table(tmp_path / "new" / "test-00000-of-00001.parquet")
    assert found.column("fine_label").to_pylist() == [0, 1, 0, 1]
    assert found.schema.metadata == {b"huggingface": b"{}"}
    pixels = [Image.open(io.BytesIO(cell["bytes"])) for cell in found.column("img").to_pylist()]
    assert [image.convert("RGB").getpixel((0, 0)) for image in pixels] == [
        (40 * index, 9, 7) for index in range(4)
    ]
