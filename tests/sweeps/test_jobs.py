"""A job's place and what a sweep makes of what it finds there."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from smope.config.hydra import compose, with_sweep
from smope.config.overrides import read_overrides
from smope.errors import Interrupted, UserError
from smope.storage.files import lock_file
from smope.storage.run_directory import RunDirectory
from smope.storage.sweep_manifest import read_manifests
from smope.sweeps import driver, job_runner
from smope.sweeps.expand import expand_jobs, write_manifests
from smope.sweeps.jobs import Job, State, clear_stub, inspect_job, make_job


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(*overrides: str) -> Job:
    return make_job(compose(read_overrides(overrides)), overrides, overrides)


def planned(*overrides: str) -> list[Job]:
    return expand_jobs(with_sweep(read_overrides(overrides, multirun=True)))[0]


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
            "was interrupted after 1 of 2 tasks, continues",
        ),
        (
            {"status": "running", "accuracy_matrix": HALF},
            State.STOPPED,
            "was killed after 1 of 2 tasks, continues",
        ),
        (
            {"status": "failed", "accuracy_matrix": HALF},
            State.FAILED,
            "failed after 1 of 2 tasks, tried again",
        ),
        (None, State.STOPPED, "was killed before its first task, continues"),
    ],
)
def test_what_there_is(record: dict[str, Any] | None, state: State, words: str) -> None:
    assert inspect_job(write(job("seed=1"), record)) == (state, words)


def test_nothing_there_is_new_and_a_log_alone_a_failure() -> None:
    one = job("seed=1")
    assert inspect_job(one) == (State.NEW, "new")
    one.log.parent.mkdir(parents=True)
    one.log.write_text("Traceback\n\nsmope: error: no such data\n\n")
    assert inspect_job(one) == (State.FAILED, "failed before its first task, tried again")
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
        state, words = inspect_job(one)
        assert state is State.IN_USE
        assert words == f"being trained by process {child} on {os.uname().nodename}, left to it"
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert inspect_job(one)[0] is State.STOPPED


def test_the_place_is_found_again_whatever_else_is_swept() -> None:
    first, second = (
        planned("seed=0,1", "method=ncm,finetune")[0],
        planned("seed=0", "method=ncm")[0],
    )
    assert first.path.name == f"seed0-ncm-{first.config.config_hash}"
    (single,) = planned("method=ncm", "seed=3")
    assert single.path.name == f"ncm-seed3-{single.config.config_hash}", "nothing is swept"
    assert second.path.name == f"ncm-seed0-{first.config.config_hash}"
    write(first)
    assert (
        planned("seed=0", "method=ncm", "trainer.device=cpu", "tracker=csv")[0].path == first.path
    )


def test_what_is_swept_names_the_folder() -> None:
    names = [
        one.path.name.rpartition("-")[0]
        for one in planned("router.top_k=3", "method.blocks=[0,1],[2]", "seed=4")
    ]
    assert names == ["blocks_0_1", "blocks_2"]
    long = planned("stream=digits", f"name={'x' * 200},b")
    assert all(len(one.path.name) < 80 for one in long)


def test_the_same_computation_is_one_job() -> None:
    assert len(planned("trainer.num_workers=0,1", "seed=0,1")) == 2


def test_combinations_that_cannot_be_run_are_told_apart() -> None:
    jobs, errors = expand_jobs(
        with_sweep(read_overrides(["router.top_k=3,30", "seed=0"], multirun=True))
    )
    assert [one.label for one in jobs] == ["router.top_k=3"]
    (error,) = errors
    assert error.startswith(
        "job router.top_k=30: router.top_k must be in 1..method.num_experts=25, got 30; "
    )
    with pytest.raises(
        UserError, match=r"unknown key router\.topk=1; did you mean router\.top_k\?"
    ):
        planned("router.topk=1,2")


@pytest.mark.parametrize(
    ("sweep", "number"),
    [("paper_table_small", 32), ("ablation_small", 14), ("sensitivity_small", 20)],
)
def test_sweeps_of_conf(sweep: str, number: int) -> None:
    overrides = with_sweep(read_overrides([f"sweep={sweep}"], multirun=True))
    sizes = [
        len(list(item.sweep_string_iterator()))
        for item in overrides.parsed
        if item.is_sweep_override()
    ]
    product = 1
    for size in sizes:
        product *= size
    assert product == number
    assert "name" in overrides.given


def test_the_command_line_comes_before_the_sweep() -> None:
    jobs = planned("sweep=ablation_small", "seed=7", "variant=full", "name=mine")
    assert [(one.config.seed, one.config.name, one.path.parent) for one in jobs] == [
        (7, "mine", Path("runs/mine"))
    ]
    assert jobs[0].config.trainer["epochs"] == 3, "what the command line leaves open is the sweep's"


def test_the_list_of_jobs_is_left_once_for_the_same_jobs() -> None:
    jobs = planned("seed=0,1")
    for command in (
        ["smope", "train", "-m", "seed=0,1"],
        ["smope", "train", "-m", "seed=0,1", "tracker=csv"],
    ):
        write_manifests(jobs, command)
    (manifest,) = read_manifests(Path("runs/digits"))
    assert manifest["command"] == "smope train -m seed=0,1 tracker=csv"
    assert [(entry["method"], entry["seed"]) for entry in manifest["jobs"]] == [
        ("smope", 0),
        ("smope", 1),
    ]
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


@pytest.fixture
def run_apart(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a job's process would be given, which is not started; `code` is how it ended."""
    given: dict[str, Any] = {"code": 0}

    def ended(config: Any, run_dir: Path, **_: Any) -> int:
        given.update(run_dir=run_dir, threads=os.environ.get("OMP_NUM_THREADS"))
        return given["code"]

    monkeypatch.setattr(job_runner, "run_apart", ended)
    return given


def called(
    one: Job, monkeypatch: pytest.MonkeyPatch, launcher: str = job_runner.BASIC, jobs: int = 1
) -> float | None:
    """What a launcher gets that calls the task of a sweep for one of its jobs."""
    job = SimpleNamespace(num=0)
    hydra = SimpleNamespace(
        overrides=SimpleNamespace(task=one.texts),
        launcher=SimpleNamespace(_target_=launcher),
        job=job,
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    planned = {job_runner.job_key(one.config): one} | {
        ("other", str(number)): one for number in range(1, jobs)
    }
    return job_runner.JobRunner(Path.cwd(), Path("stop"), planned)(
        OmegaConf.create(one.config.as_dict())
    )


def test_what_another_command_began_meanwhile_is_found_again(
    run_apart: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned by both as new, in folders that are named after what each of them sweeps."""
    ours, theirs = (
        planned("seed=0", "method=smope,ncm")[1],
        planned("seed=0,1", "method=smope,ncm")[1],
    )
    assert ours.config == theirs.config and ours.path != theirs.path
    write(theirs, {"status": "interrupted"})
    called(ours, monkeypatch)
    assert run_apart["run_dir"] == theirs.path
    (theirs.path / "run.json").write_text(json.dumps({"status": "finished"}))
    assert driver._summarise([ours], set(), 0, None) == 0


@pytest.mark.parametrize(
    ("status", "score"), [("finished", 0.5), ("interrupted", None), ("running", None)]
)
def test_a_sweeper_hears_of_finished_runs_alone(
    status: str, score: float | None, run_apart: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(job("seed=1"), {"status": status, "final_average_accuracy": 0.5})
    run_apart["code"] = 128 + signal.SIGTERM
    assert called(one, monkeypatch) == score


def test_jobs_of_submitit_have_the_threads_that_they_were_given(
    run_apart: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's number, or a share of this machine's cores, unless the user said one; others divide
    them themselves.
    """
    one, local = job("seed=1"), job_runner.SUBMITIT + "submitit_launcher.LocalLauncher"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    found = []
    for launcher, jobs, slurm in [
        (job_runner.BASIC, 3, ""),
        (local, 3, ""),
        (local, 20, ""),
        (local, 3, "6"),
    ]:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
        called(one, monkeypatch, launcher, jobs)
        found.append(run_apart["threads"])
    assert found == [None, "2", "1", "6"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    called(one, monkeypatch, local)
    assert run_apart["threads"] == "5"


def late_holder(path: Path) -> int:
    """A process that takes the lock of a run in a moment, as one that is still making its
    directory.
    """
    child = os.fork()
    if child == 0:
        time.sleep(0.2)
        with RunDirectory(path).locked():
            time.sleep(60)
        os._exit(0)
    return child


def test_of_two_sweeps_that_begin_a_job_together_one_leaves_it_to_the_other(
    run_apart: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job("seed=1")
    children = []

    def refused(*_: Any, **__: Any) -> int:
        write(one)
        one.log.parent.mkdir()
        one.log.write_text("what the other run says")
        children.append(late_holder(one.path))
        return 2

    monkeypatch.setattr(job_runner, "run_apart", refused)
    try:
        assert called(one, monkeypatch) is None
        assert one.log.is_file(), "the other one writes to it"
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
    monkeypatch.setattr(job_runner, "run_apart", lambda *_, **__: 2)
    with pytest.raises(job_runner.JobFailed):
        called(one, monkeypatch)


def test_a_look_at_who_trains_keeps_nobody_from_it() -> None:
    one = write(job("seed=1"))
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        file = lock_file(one.path / ".lock")
        os.write(written, b"x")
        time.sleep(0.3)
        os._exit(file is None)
    os.read(read, 1)
    with RunDirectory(one.path).locked():
        assert os.waitpid(child, 0)[1] == 0


def sweeper(*overrides: str, dry_run: bool = False) -> int:
    """A sweep in which a plugin decides what to try; driver.multirun is patched, so that it need
    not be there.
    """
    path = Path("own/hydra/sweeper/own.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("_target_: hydra_plugins.own.Own\n")
    given = read_overrides(["hydra/sweeper=own", *overrides], "own", multirun=True)
    return driver.run_sweep(given, ["smope", "train", "-m", *overrides], print if dry_run else None)


def test_a_sweeper_may_not_choose_by_test_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "run_sweeper", lambda *_: None)
    with pytest.raises(
        UserError, match=r"stream\.validation_fraction=null: a sweeper would choose by test scores"
    ):
        sweeper("router.top_k=1,3")
    assert sweeper("router.top_k=1,3", "stream.validation_fraction=0.2") == 0
    with pytest.raises(UserError, match="--dry-run: a sweeper decides while it runs"):
        sweeper("stream.validation_fraction=0.2", dry_run=True)


def test_a_sweeper_that_is_stopped_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise TypeError("None is no score")  # of the run that was stopped

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        monkeypatch.setattr(driver, "run_sweeper", stop)
        with pytest.raises(Interrupted) as stopped:
            sweeper("stream.validation_fraction=0.2")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.exit_code == 143
    said = capfd.readouterr()
    assert (
        "the same command continues from here: smope train -m stream.validation_fraction=0.2"
        in said.out
    )
    assert "stopping: runs save a checkpoint first" in said.err
    assert not list(Path("runs").iterdir()), "the file that asks to stop is gone"


def test_a_folder_named_by_its_hash_alone_is_found_again() -> None:
    """Sweeps of earlier versions named the folder of a job without swept values so."""
    named = job("method=ncm")
    old = named.path.parent / named.config.config_hash
    (old / "checkpoints").mkdir(parents=True)
    (old / "run.json").write_text(json.dumps({"status": "finished"}))
    (again,) = planned("method=ncm")
    assert (again.path, inspect_job(again)[0]) == (old, State.FINISHED)
