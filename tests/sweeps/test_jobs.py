"""A job's place and what a sweep makes of what it finds there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from smope.compose import compose, read_overrides, with_sweep
from smope.errors import UserError
from smope.runs import RunDirectory
from smope.sweeps.jobs import Job, State, clear_stub, look, make_job
from smope.sweeps.plan import plan_jobs, read_manifests, write_manifests


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(*overrides: str) -> Job:
    return make_job(compose(read_overrides(overrides)), overrides, overrides)


def planned(*overrides: str) -> list[Job]:
    return plan_jobs(with_sweep(read_overrides(overrides, multirun=True)))[0]


def write(job: Job, record: dict[str, Any] | None = None) -> Job:
    (job.path / "checkpoints").mkdir(parents=True)
    (job.path / "config.yaml").write_text("seed: 0\n")
    if record is not None:
        (job.path / "run.json").write_text(json.dumps(record))
    return job


HALF = [[0.5, None], [None, None]]


@pytest.mark.parametrize(
    ("record", "state", "words"),
    [
        ({"status": "finished"}, State.FINISHED, "finished before, skipped"),
        (
            {"status": "interrupted", "accuracy_matrix": HALF},
            State.STOPPED,
            "was interrupted after 1 of 2 tasks, goes on",
        ),
        ({"status": "running", "accuracy_matrix": HALF}, State.STOPPED, "was killed after 1 of 2 tasks, goes on"),
        ({"status": "failed", "accuracy_matrix": HALF}, State.FAILED, "failed after 1 of 2 tasks, tried again"),
        (None, State.STOPPED, "was killed before its first task, goes on"),
    ],
)
def test_what_there_is(record: dict[str, Any] | None, state: State, words: str) -> None:
    assert look(write(job("seed=1"), record)) == (state, words)


def test_nothing_there_is_new_and_a_log_alone_a_failure() -> None:
    one = job("seed=1")
    assert look(one) == (State.NEW, "new")
    one.log.parent.mkdir(parents=True)
    one.log.write_text("Traceback\n\nsmope: error: no such data\n\n")
    assert look(one) == (State.FAILED, "failed before its first task, tried again")
    assert one.failure() == "no such data"


def test_one_that_another_process_trains_is_left_to_it() -> None:
    one = write(job("seed=1"), {"status": "running"})
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        with RunDirectory(one.path).locked():
            os.write(written, b"x")
            os.read(os.pipe()[0], 1)
    os.read(read, 1)
    try:
        state, words = look(one)
        assert state is State.IN_USE
        assert words == f"being trained by process {child} on {os.uname().nodename}, left to it"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert look(one)[0] is State.STOPPED


def test_the_place_is_found_again_whatever_else_is_swept() -> None:
    first, second = planned("seed=0,1", "method=ncm,finetune")[0], planned("seed=0", "method=ncm")[0]
    assert first.path.name == f"seed0-ncm-{first.config.config_hash}"
    assert second.path.name == first.config.config_hash
    write(first)
    assert planned("seed=0", "method=ncm", "trainer.device=cpu", "tracker=csv")[0].path == first.path


def test_what_is_swept_names_the_folder() -> None:
    names = [one.path.name.rpartition("-")[0] for one in planned("router.top_k=3", "method.blocks=[0,1],[2]", "seed=4")]
    assert names == ["blocks_0_1", "blocks_2"]
    long = planned("stream=digits", f"name={'x' * 200},b")
    assert all(len(one.path.name) < 80 for one in long)


def test_the_same_computation_is_one_job() -> None:
    assert len(planned("trainer.num_workers=0,1", "seed=0,1")) == 2


def test_combinations_that_cannot_be_run_are_told_apart() -> None:
    jobs, errors = plan_jobs(with_sweep(read_overrides(["router.top_k=3,30", "seed=0"], multirun=True)))
    assert [one.label for one in jobs] == ["router.top_k=3"]
    (error,) = errors
    assert error.startswith("job router.top_k=30: router.top_k must be in 1..method.num_experts=25, got 30; ")
    with pytest.raises(UserError, match=r"unknown key router\.topk=1; did you mean router\.top_k\?"):
        planned("router.topk=1,2")


@pytest.mark.parametrize(
    ("sweep", "number"),
    [("paper_table_small", 32), ("ablation_small", 14), ("sensitivity_small", 20)],
)
def test_sweeps_of_conf(sweep: str, number: int) -> None:
    overrides = with_sweep(read_overrides([f"sweep={sweep}"], multirun=True))
    sizes = [len(list(item.sweep_string_iterator())) for item in overrides.parsed if item.is_sweep_override()]
    product = 1
    for size in sizes:
        product *= size
    assert product == number
    assert "name" in overrides.given


def test_the_command_line_comes_before_the_sweep() -> None:
    jobs = planned("sweep=ablation_small", "seed=7", "variant=full", "name=mine")
    assert [(one.config.seed, one.config.name, one.path.parent) for one in jobs] == [(7, "mine", Path("runs/mine"))]
    assert jobs[0].config.trainer["epochs"] == 3, "what the command line leaves open is the sweep's"


def test_the_list_of_jobs_is_left_once_for_the_same_jobs() -> None:
    jobs = planned("seed=0,1")
    for command in (["smope", "train", "-m", "seed=0,1"], ["smope", "train", "-m", "seed=0,1", "tracker=csv"]):
        write_manifests(jobs, command)
    (manifest,) = read_manifests(Path("runs/digits"))
    assert manifest["command"] == "smope train -m seed=0,1 tracker=csv"
    assert [(entry["method"], entry["seed"]) for entry in manifest["jobs"]] == [("smope", 0), ("smope", 1)]
    Path("runs/digits/sweeps/broken.json").write_text("{")
    assert read_manifests(Path("runs/digits")) == [manifest]


def test_what_a_killed_beginning_leaves_is_removed_and_nothing_else() -> None:
    stub, kept = Path("stub"), Path("kept")
    for path in (stub, kept):
        (path / "checkpoints").mkdir(parents=True)
        (path / ".config.yaml.1.tmp").touch()
    (kept / "mine.txt").touch()
    clear_stub(stub)
    clear_stub(kept)
    assert not stub.exists()
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]
