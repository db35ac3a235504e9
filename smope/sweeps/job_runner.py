"""What a launcher calls for each job: in the sweep's process, in a worker process, or on another
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
from smope.storage.run_directory import LOCK_GRACE_SECONDS, RunDirectory
from smope.sweeps.jobs import Job, State, at_its_folder, clear_stub, inspect_job, make_job
from smope.sweeps.process import run_apart, stopped

BASIC = "hydra._internal.core_plugins.basic_launcher."
SUBMITIT = "hydra_plugins.hydra_submitit_launcher."
REFUSED = 2  # exit code of a run that could not begin
SLURM_END_SECONDS = 3600  # that a job waits for the end that Slurm has end_signals


class JobFailed(Exception):
    """A job failed; the line that says why has been printed."""


@dataclass(frozen=True)
class JobRunner:
    """Runs one job, unless it is finished or another sweep is running it.

    Attributes:
        folder: The working directory of the sweep, which relative paths start from.
        stop: A file that exists once the sweep has to stop.
        jobs: The jobs of the sweep by `job_key`. A job of a sweeper's own is not among them and
            gets its folder when it runs.
        process: The process id of the sweep.
    """

    folder: Path
    stop: Path
    jobs: Mapping[tuple[str, str], Job] = field(default_factory=dict)
    process: int = field(default_factory=os.getpid)

    def __call__(self, composed: Any) -> float | None:
        """Run the job of a composed configuration.

        Returns:
            The final average accuracy, for sweepers that look for the best; None if the run is not
            finished.

        Raises:
            JobFailed: after a line that says why.
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
                job = self.jobs.get(job_key(config)) or make_job(config, texts, texts)
                return self._run(at_its_folder(job), int(hydra.job.num), launcher)
        except (UserError, OSError) as error:
            label = " ".join(texts) or "defaults"
            print(f"smope: error: job {label}: {error}", file=sys.stderr, flush=True)
            raise JobFailed(label) from None

    def _leave_ctrl_c_to_the_sweep(self) -> None:
        """Ignore Ctrl-C in a worker, which would otherwise die before its run has saved a
        checkpoint.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _run(self, job: Job, number: int, launcher: str) -> float | None:
        state, words = inspect_job(job)
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
        with EndSignals(launcher.startswith(SUBMITIT)) as end_signals:
            code = run_apart(
                job.config,
                job.path,
                resume=resume,
                log=job.log,
                quiet=not launcher.startswith((BASIC, SUBMITIT)),
                stop_requested=lambda: end_signals.number is not None or self.stop.exists(),
            )
            end_signals.answer()
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
    """Whether another sweep began the job at the same time: it may take the lock a little later."""
    end = time.monotonic() + LOCK_GRACE_SECONDS
    while (state := inspect_job(job)[0]) not in (
        State.IN_USE,
        State.FINISHED,
    ) and time.monotonic() < end:
        time.sleep(0.05)
    if state is State.FINISHED:
        job.log.unlink(missing_ok=True)
    return state in (State.IN_USE, State.FINISHED)


def job_key(config: Config) -> tuple[str, str]:
    """What two equal jobs have in common: the folder of the sweep, and the computation."""
    return config.name, config.config_hash


def _threads(jobs: int) -> int:
    """The cores of a job of submitit: those that Slurm gave it, or its share of this machine's."""
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


class EndSignals:
    """The signals by which a cluster announces a job's end, held until the run has saved.

    SIGUSR2: The time is up, or the job is preempted. submitit's own handler queues it again.
    SIGTERM: Slurm will queue the job again, or end it after scancel. A job that ends by itself is
        not queued again, so this one waits.
    """

    def __init__(self, active: bool) -> None:
        self.active = active
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> EndSignals:
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
        """Do what the signal asks for, now that the run has saved; nothing if there was none."""
        if self.number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ:
            end = time.monotonic() + SLURM_END_SECONDS
            while self.number == signal.SIGTERM and time.monotonic() < end:
                time.sleep(1.0)
        if self.number == signal.SIGUSR2:
            self._before[signal.SIGUSR2](signal.SIGUSR2, None)
