"""What a launcher calls for each job: in the sweep's process, in a worker's beside it, or on a
machine of a cluster.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from smope.config.config import Config, validate
from smope.config.hydra import plain_values
from smope.errors import UserError
from smope.storage.run_directory import MOMENT, RunDirectory
from smope.sweeps.jobs import Job, State, clear_stub, found_again, look, make_job
from smope.sweeps.process import run_apart, stopped

BASIC = "hydra._internal.core_plugins.basic_launcher."
SUBMITIT = "hydra_plugins.hydra_submitit_launcher."
REFUSED = 2  # exit code of a run that could not begin
PATIENCE = 3600  # seconds that a job waits for the end that Slurm has announced


class JobFailed(Exception):
    """A job that failed; its own line is printed where and when it happened."""


@dataclass(frozen=True)
class Task:
    """Runs one job, unless it is done or under way: another sweep may have come first while this
    one waited.

    jobs: those of the sweep by `key`; a job that is not among them (a sweeper thought of it) gets
    its place here.
    folder: the current one of the sweep, to which paths are relative wherever the job runs.
    stop: a file that exists once the sweep is to stop.
    process: the sweep's.
    """

    folder: Path
    stop: Path
    jobs: Mapping[tuple[str, str], Job] = field(default_factory=dict)
    process: int = field(default_factory=os.getpid)

    def __call__(self, composed: Any) -> float | None:
        """Returns the final average accuracy, for sweepers that look for the best; None of a run
        that is not finished.

        JobFailed, after a line that says why, where the job failed.
        """
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        texts = [text.lstrip("+") for text in hydra.overrides.task]
        launcher = str(hydra.launcher._target_)
        if os.getpid() != self.process:
            self._leave_ctrl_c_to_the_sweep()
        try:
            config = validate(plain_values(composed), {text.partition("=")[0] for text in texts})
            with contextlib.chdir(self.folder):
                job = self.jobs.get(key(config)) or make_job(config, texts, texts)
                return self._run(found_again(job), int(hydra.job.num), launcher)
        except (UserError, OSError) as error:
            label = " ".join(texts) or "defaults"
            print(f"smope: error: job {label}: {error}", file=sys.stderr, flush=True)
            raise JobFailed(label) from None

    def _leave_ctrl_c_to_the_sweep(self) -> None:
        """In a worker, which a terminal interrupts as well: it would die, and its run with it,
        instead of saving.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _run(self, job: Job, number: int, launcher: str) -> float | None:
        state, words = look(job)
        if self.stop.exists():
            return None
        if state in (State.FINISHED, State.IN_USE):
            print(f"job {number + 1}: {job.label}: {words}", flush=True)
            return _accuracy(job)
        print(f"job {number + 1}: {job.label}: {words} ({job.path})", flush=True)
        clear_stub(job.path)
        resume = RunDirectory(job.path).config.is_file()
        if launcher.startswith(SUBMITIT):  # other launchers give a job its threads themselves
            os.environ.setdefault("OMP_NUM_THREADS", str(_threads(len(self.jobs))))
        with Announced(launcher.startswith(SUBMITIT)) as announced:
            code = run_apart(
                job.config,
                job.path,
                resume=resume,
                log=job.log,
                quiet=not launcher.startswith((BASIC, SUBMITIT)),
                asked=lambda: announced.number is not None or self.stop.exists(),
            )
            announced.answer()
        return self._ended(job, code)

    def _ended(self, job: Job, code: int) -> float | None:
        if code == 0 or stopped(code):
            return _accuracy(job)
        if code == REFUSED and _is_anothers(job):
            return _accuracy(job)
        print(
            f"smope: error: job {job.label}: {job.failure()}; log: {job.log}",
            file=sys.stderr,
            flush=True,
        )
        raise JobFailed(job.label)


def _is_anothers(job: Job) -> bool:
    """Whether another sweep began the job in the same moment: it may lock it a little later, and
    writes to its log.
    """
    end = time.monotonic() + MOMENT
    while (state := look(job)[0]) not in (State.IN_USE, State.FINISHED) and time.monotonic() < end:
        time.sleep(0.05)
    if state is State.FINISHED:
        job.log.unlink(missing_ok=True)
    return state in (State.IN_USE, State.FINISHED)


def key(config: Config) -> tuple[str, str]:
    """What makes a job the same as another: the folder of its sweep, and what it computes."""
    return config.name, config.config_hash


def _threads(jobs: int) -> int:
    """The cores of a job of submitit: what Slurm gave it, or its share of this machine's, where
    all run at once.
    """
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if given.isdigit():
        return int(given)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // max(1, jobs))


def _accuracy(job: Job) -> float | None:
    record = RunDirectory(job.path).read_record()
    return record.get("final_average_accuracy") if record.get("status") == "finished" else None


class Announced:
    """The signals with which a cluster announces a job's end, kept until the run has saved its
    checkpoint.

    SIGUSR2: the time is up, or others come first; submitit's own answer queues the job again.
    SIGTERM: what comes is Slurm's to decide, by queueing the job again or, after scancel, by ending
    it: a job that ended by itself would not be queued again, so this one waits.
    """

    def __init__(self, active: bool) -> None:
        self.active = active
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Announced:
        if self.active:
            for number in (signal.SIGUSR2, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number != signal.SIGUSR2:
            self.number = number

    def answer(self) -> None:
        """Hand on what was announced, now that everything is saved; does nothing where nothing
        was.
        """
        if self.number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            end = time.monotonic() + PATIENCE
            while self.number == signal.SIGTERM and time.monotonic() < end:
                time.sleep(1.0)
        if self.number == signal.SIGUSR2:
            self._before[signal.SIGUSR2](signal.SIGUSR2, None)
