"""A sweep from its first line to its last: list the jobs, launch them, summarise them."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from smope.config.config import Config
from smope.config.hydra import compose_values, launch_jobs, run_sweeper, with_sweep, workers
from smope.config.overrides import Overrides, chosen_launcher, combinations, sweeper_decides
from smope.errors import Interrupted, UserError, one_line
from smope.storage.commands import command as command_line
from smope.storage.run_directory import RUNS_FOLDER
from smope.sweeps import one_gpu
from smope.sweeps.expand import expand_jobs, write_manifests
from smope.sweeps.job_runner import JobFailed, JobRunner, job_key
from smope.sweeps.jobs import Job, State, at_its_folder, inspect_job

SLOW_CONFIGURATIONS = 30  # so many take more than a few seconds to compose
STOPPING = b"\nstopping: runs save a checkpoint first; a second signal stops at once\n"


def run_sweep(
    overrides: Overrides,
    command: Sequence[str],
    describe: Callable[[Config, Path], object] | None = None,
) -> int:
    """Run every combination that is not finished.

    Args:
        overrides: The overrides of the multirun.
        command: The command line, for messages and the manifest.
        describe: For a dry run: called with each configuration and its run directory instead of
            running it. Nothing is written then.

    Returns:
        The exit code, 1 if a job is not finished afterwards.
    """
    if sweeper_decides(overrides):
        if describe is not None:
            raise UserError(
                "--dry-run: a sweeper decides while it runs what there will be; leave one of them "
                "out"
            )
        return _search(overrides, command)
    overrides = with_sweep(overrides)
    number = sum(1 for _ in combinations(overrides))
    if number > SLOW_CONFIGURATIONS:
        print(f"composing {number} configurations", flush=True)
    jobs, impossible = expand_jobs(overrides)
    for line in impossible:
        print(f"smope: error: {line}", file=sys.stderr)
    states = [(job, *inspect_job(job)) for job in jobs]
    _print_states(states)
    if describe is not None:
        for job in jobs:
            print(f"\n{job.path}:")
            describe(job.config, job.path)
        return 0
    todo = [job for job, state, _ in states if state not in (State.FINISHED, State.IN_USE)]
    if todo and chosen_launcher(overrides) == one_gpu.LAUNCHER:
        at_once = min(workers(overrides), len(todo))
        print(one_gpu.check_memory([job.config for job in todo], at_once), flush=True)
    write_manifests(jobs, command)
    trouble = _run_jobs(overrides, todo, command) if todo else None
    return _summarise(jobs, {job.label for job in todo}, len(impossible), trouble)


def _print_states(states: Sequence[tuple[Job, State, str]]) -> None:
    """Print one line for each job, with its state."""
    counts: dict[State, int] = {}
    for _, state, _ in states:
        counts[state] = counts.get(state, 0) + 1
    words = ", ".join(f"{number} {state.value}" for state, number in counts.items())
    print(f"{len(states)} job{'s' if len(states) > 1 else ''}: {words}")
    for job, _, word in states:
        print(f"  {job.label}: {word} ({job.path})")
    sys.stdout.flush()


def _run_jobs(overrides: Overrides, jobs: Sequence[Job], command: Sequence[str]) -> str | None:
    """Run the jobs by the chosen launcher.

    Returns:
        The error of the launcher itself, if it failed.

    Raises:
        KeyboardInterrupt: if the sweep was stopped.
    """
    stop = _stop_file(jobs[0].path.parent)
    task = JobRunner(Path.cwd(), stop, {job_key(job.config): job for job in jobs})
    name = chosen_launcher(overrides)
    trouble = None
    with _watched(stop, name, command), _sharing(name, jobs):
        if name.startswith("submitit"):
            print(
                f"{len(jobs)} jobs go to {name}, whose files are in {stop.parent / '.submitit'}",
                flush=True,
            )
        try:
            launch_jobs(overrides, [job.texts for job in jobs], task)
        except UserError:
            raise
        except (
            Exception
        ) as error:  # a launcher's worker that died is met with its library's own class
            trouble = f"the launcher stopped: {type(error).__name__}: {one_line(error)}"
    return trouble


def _sharing(launcher: str, jobs: Sequence[Job]) -> AbstractContextManager[None]:
    """What jobs that share a GPU need beside their launcher."""
    on_gpu = any(job.config.trainer["device"] != "cpu" for job in jobs)
    return one_gpu.mps() if launcher == one_gpu.LAUNCHER and on_gpu else nullcontext()


@contextmanager
def _watched(stop: Path, launcher: str, command: Sequence[str]) -> Iterator[None]:
    """Let jobs run in the block. If it is stopped, print how to continue and raise
    KeyboardInterrupt.
    """
    try:
        with nullcontext() if launcher.startswith("submitit") else _stopping(stop):
            yield
    except KeyboardInterrupt:
        _print_how_to_continue(launcher, command)
        raise
    except Exception:
        if not stop.exists():  # a launcher may miss what a stopped job did not return
            raise
    finally:
        interrupted = _number(stop)
        stop.unlink(missing_ok=True)
    if interrupted is not None:
        _print_how_to_continue(launcher, command)
        raise Interrupted(interrupted)


def _print_how_to_continue(launcher: str, command: Sequence[str]) -> None:
    if launcher == "submitit_slurm":
        print(
            "no longer waiting; jobs stay in Slurm's queue (squeue shows them, scancel stops them)"
        )
    print(f"the same command continues from here: {shlex.join(command)}", flush=True)


def _stop_file(folder: Path) -> Path:
    """The file that tells all processes of this sweep to stop, once it exists."""
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f".stop-{platform.node()}-{os.getpid()}").absolute()


def _number(stop: Path) -> int | None:
    return int(stop.read_text() or signal.SIGINT) if stop.exists() else None


@contextmanager
def _stopping(stop: Path) -> Iterator[None]:
    """At the first SIGINT or SIGTERM runs save and end, and no other begins. The second one has
    its usual effect.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {
        number: handler
        for number, handler in before.items()
        if handler not in (None, signal.SIG_IGN)
    }

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def answer(number: int, _frame: FrameType | None) -> None:
        put_back()
        stop.write_text(str(number))
        os.write(2, STOPPING)  # the signal may have interrupted a print

    for number in before:
        signal.signal(number, answer)
    try:
        yield
    finally:
        put_back()


def _summarise(jobs: Sequence[Job], tried: set[str], impossible: int, trouble: str | None) -> int:
    """Print the outcome of all jobs, with error and log of failed ones. Returns the exit code."""
    outcomes = [(job, inspect_job(job)[0]) for job in map(at_its_folder, jobs)]
    finished = sum(state is State.FINISHED for _, state in outcomes)
    rest = [(job, state) for job, state in outcomes if state is not State.FINISHED]
    print(f"\nsweep: {finished} of {len(jobs)} jobs finished")
    if trouble is not None:
        print(f"smope: error: {trouble}", file=sys.stderr)
    for job, state in rest:
        if state is State.IN_USE:
            print(f"  {job.label}: still running elsewhere ({job.path})")
        elif job.label in tried and job.failure():
            print(f"  failed: {job.label}: {job.failure()}; log: {job.log}")
        else:
            print(f"  not finished: {job.label} ({job.path})")
    if impossible:
        print(f"  {impossible} combinations cannot be run; the reasons are above")
    if rest:
        print("the same command tries again what is not finished, and leaves the rest alone")
    if finished:
        folders = sorted({str(job.path.parent) for job in jobs})
        print(f"the table: {command_line('collect', *folders)}")
    sys.stdout.flush()
    return 1 if rest or impossible else 0


def _search(overrides: Overrides, command: Sequence[str]) -> int:
    """Run a Hydra sweeper that decides what to try while it runs. Returns the exit code."""
    if (
        compose_values(with_sweep(overrides), multirun=True)["stream"].get("validation_fraction")
        is None
    ):
        raise UserError(
            "stream.validation_fraction=null: a sweeper would choose by test scores, which are "
            "too good to report "
            "afterwards; write stream.validation_fraction=0.2, or search with `smope tune`"
        )
    stop = _stop_file(RUNS_FOLDER)
    try:
        with _watched(stop, chosen_launcher(overrides), command):
            run_sweeper(overrides, JobRunner(Path.cwd(), stop))
    except JobFailed:
        print("smope: error: at least one job failed; the others were run", file=sys.stderr)
        return 1
    return 0
