"""A sweep from its first line to its last: what there is to do, the launcher that does it, what
became of it.
"""

from __future__ import annotations

import os
import platform
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from smope.config.config import Config
from smope.config.hydra import compose_values, launch, multirun, with_sweep
from smope.config.overrides import Overrides, chosen_launcher, combinations, sweeper_decides
from smope.errors import Interrupted, UserError, one_line
from smope.sweeps.jobs import RUNS, Job, State, found_again, look
from smope.sweeps.plan import plan_jobs, write_manifests
from smope.sweeps.task import JobFailed, Task, key

MANY = 30  # configurations that take more than a few seconds to compose
STOPPING = b"\nstopping: runs save a checkpoint first; a second signal stops at once\n"


def run_sweep(
    overrides: Overrides,
    command: Sequence[str],
    describe: Callable[[Config, Path], object] | None = None,
) -> int:
    """Run every combination that is not finished; returns the exit code, 1 where one is not
    finished afterwards.

    With `describe` each configuration and its run directory are given to that instead, and nothing
    is written.
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
    if number > MANY:
        print(f"composing {number} configurations", flush=True)
    jobs, impossible = plan_jobs(overrides)
    for line in impossible:
        print(f"smope: error: {line}", file=sys.stderr)
    found = [(job, *look(job)) for job in jobs]
    _announce(found)
    if describe is not None:
        for job in jobs:
            print(f"\n{job.path}:")
            describe(job.config, job.path)
        return 0
    write_manifests(jobs, command)
    todo = [job for job, state, _ in found if state not in (State.FINISHED, State.IN_USE)]
    trouble = _launch(overrides, todo, command) if todo else None
    return _summarise(jobs, {job.label for job in todo}, len(impossible), trouble)


def _announce(found: Sequence[tuple[Job, State, str]]) -> None:
    """What there is, a line a job."""
    counts: dict[State, int] = {}
    for _, state, _ in found:
        counts[state] = counts.get(state, 0) + 1
    words = ", ".join(f"{number} {state.value}" for state, number in counts.items())
    print(f"{len(found)} job{'s' if len(found) > 1 else ''}: {words}")
    for job, _, word in found:
        print(f"  {job.label}: {word} ({job.path})")
    sys.stdout.flush()


def _launch(overrides: Overrides, jobs: Sequence[Job], command: Sequence[str]) -> str | None:
    """Have the jobs run; returns what the launcher itself failed with, if it did.

    KeyboardInterrupt when stopped.
    """
    stop = _stop_file(jobs[0].path.parent)
    task = Task(Path.cwd(), stop, {key(job.config): job for job in jobs})
    name = chosen_launcher(overrides)
    trouble = None
    with _watched(stop, name, command):
        if name.startswith("submitit"):
            print(
                f"{len(jobs)} jobs go to {name}, whose files are in {stop.parent / '.submitit'}",
                flush=True,
            )
        try:
            launch(overrides, [job.texts for job in jobs], task)
        except UserError:
            raise
        except (
            Exception
        ) as error:  # a launcher's worker that died is met with its library's own class
            trouble = f"the launcher stopped: {type(error).__name__}: {one_line(error)}"
    return trouble


@contextmanager
def _watched(stop: Path, launcher: str, command: Sequence[str]) -> Iterator[None]:
    """Jobs run in the block; where it is stopped, how to go on is told, and KeyboardInterrupt
    raised.
    """
    try:
        with nullcontext() if launcher.startswith("submitit") else _stopping(stop):
            yield
    except KeyboardInterrupt:
        _tell_how_to_go_on(launcher, command)
        raise
    except Exception:
        if not stop.exists():  # what a stopped job did not return is missed
            raise
    finally:
        interrupted = _number(stop)
        stop.unlink(missing_ok=True)
    if interrupted is not None:
        _tell_how_to_go_on(launcher, command)
        raise Interrupted(interrupted)


def _tell_how_to_go_on(launcher: str, command: Sequence[str]) -> None:
    if launcher == "submitit_slurm":
        print(
            "no longer waiting; jobs stay in Slurm's queue (squeue shows them, scancel stops them)"
        )
    print(f"the same command goes on from here: {shlex.join(command)}", flush=True)


def _stop_file(folder: Path) -> Path:
    """Where all processes of this sweep look whether it is to stop."""
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f".stop-{platform.node()}-{os.getpid()}").absolute()


def _number(stop: Path) -> int | None:
    return int(stop.read_text() or signal.SIGINT) if stop.exists() else None


@contextmanager
def _stopping(stop: Path) -> Iterator[None]:
    """The first SIGINT or SIGTERM has runs save and end, and none begin; the second is answered as
    ever.
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
        os.write(2, STOPPING)  # print may be what the signal came into

    for number in before:
        signal.signal(number, answer)
    try:
        yield
    finally:
        put_back()


def _summarise(jobs: Sequence[Job], tried: set[str], impossible: int, trouble: str | None) -> int:
    """What became of all jobs; failed ones by name, error and log. Returns the exit code."""
    found = [(job, look(job)[0]) for job in map(found_again, jobs)]
    finished = sum(state is State.FINISHED for _, state in found)
    rest = [(job, state) for job, state in found if state is not State.FINISHED]
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
        print(f"  {impossible} combinations cannot be run, as said above")
    if rest:
        print("the same command tries again what is not finished, and leaves the rest alone")
    if finished:
        folders = sorted({str(job.path.parent) for job in jobs})
        print(f"the table: smope collect {shlex.join(folders)}")
    sys.stdout.flush()
    return 1 if rest or impossible else 0


def _search(overrides: Overrides, command: Sequence[str]) -> int:
    """A sweeper of its own decides what to try, so that no list can be made beforehand.

    Returns the exit code.
    """
    if (
        compose_values(with_sweep(overrides), multirun=True)["stream"].get("validation_fraction")
        is None
    ):
        raise UserError(
            "stream.validation_fraction=null: a sweeper would choose by test scores, which are "
            "too good to report "
            "afterwards; write stream.validation_fraction=0.2, or search with `smope tune`"
        )
    stop = _stop_file(RUNS)
    try:
        with _watched(stop, chosen_launcher(overrides), command):
            multirun(overrides, Task(Path.cwd(), stop))
    except JobFailed:
        print("smope: error: at least one job failed; the others were run", file=sys.stderr)
        return 1
    return 0
