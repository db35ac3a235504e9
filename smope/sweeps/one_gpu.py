"""Several runs at a time on one GPU: whether they fit, and NVIDIA's MPS while they run.

With MPS the kernels of all runs are on the GPU together. Without it the runs take turns, which
still hides the time in which one of them waits for images.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from smope.config.config import Config
from smope.errors import UserError, one_line
from smope.sweeps.process import process_context

LAUNCHER = "one_gpu"
OPTION = "hydra.launcher.n_jobs="
CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
DEFAULT_PIPES = Path("/tmp/nvidia-mps")
START_SECONDS, END_SECONDS = 30, 60


def check_memory(configs: Sequence[Config], at_once: int) -> str:
    """Check that the largest of some runs fits so many times into the free memory of their device.

    It is counted in a process of its own, whose memory is free again afterwards.

    Args:
        configs: of the runs.
        at_once: how many run at a time.

    Returns:
        A line with the numbers.

    Raises:
        UserError: they do not fit, or one of them cannot be built.
    """
    context = process_context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_count, args=(list(configs), at_once, sender))
    process.start()
    sender.close()
    try:
        line, problem = receiver.recv()
    except EOFError:
        line, problem = "", f"{OPTION}{at_once}: counting the memory of a run failed; see above"
    process.join()
    if problem:
        raise UserError(problem)
    return line


def _count(configs: list[Config], at_once: int, sender: Connection) -> None:
    """The body of the process."""
    from smope.planning.memory import memory_line

    try:
        sender.send((memory_line(configs, at_once, OPTION), ""))
    except (UserError, OSError, MemoryError) as error:
        sender.send(("", one_line(error)))


@contextmanager
def mps() -> Iterator[None]:
    """Within the context, processes that start use MPS, if it is installed.

    A daemon that runs already, or that the user has set up, is used and left alone.
    """
    control = shutil.which(CONTROL)
    if control is None or PIPES in os.environ or (DEFAULT_PIPES / "control").exists():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="smope-mps-") as folder:
        os.environ |= {PIPES: folder, LOGS: folder}
        started = _start(control)
        try:
            if not started:
                _forget_folder()
            yield
        finally:
            if started:
                _stop(control)
                _forget_folder()


def _start(control: str) -> bool:
    """Start the daemon; a line says so where that fails."""
    try:
        done = subprocess.run(
            [control, "-d"], capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
        problem = (done.stderr or done.stdout).strip() if done.returncode else ""
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        problem, failed = one_line(error), True
    if failed:
        reason = problem.splitlines()[0] if problem else "no reason given"
        print(f"MPS did not start ({reason}): the runs take turns on the GPU", flush=True)
    else:
        print("MPS was started for this sweep and ends with it", flush=True)
    return not failed


def _stop(control: str) -> None:
    try:
        subprocess.run(
            [control],
            input="quit\n",
            capture_output=True,
            text=True,
            timeout=END_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        print(f"MPS did not end ({one_line(error)}): echo quit | {CONTROL}", flush=True)


def _forget_folder() -> None:
    for name in (PIPES, LOGS):
        os.environ.pop(name, None)
