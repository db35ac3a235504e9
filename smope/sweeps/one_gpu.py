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
    added = [name for name in (PIPES, LOGS) if name not in os.environ]
    with tempfile.TemporaryDirectory(prefix="smope-mps-") as folder:
        os.environ |= dict.fromkeys(added, folder)
        started = _start(control, Path(folder))
        if not started:
            _remove(added)
        try:
            yield
        finally:
            if started:
                _stop(control)
                _remove(added)


def _start(control: str, folder: Path) -> bool:
    """Start the daemon; a line says so where that fails.

    Args:
        control: the program.
        folder: takes what it prints: the daemon may hold a pipe open for as long as it runs.
    """
    output = folder / "start.txt"
    try:
        with output.open("w") as file:
            subprocess.run(
                [control, "-d"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=START_SECONDS,
                check=True,
            )
    except (OSError, subprocess.SubprocessError) as error:
        lines = output.read_text(errors="replace").split("\n")
        reason = lines[0].strip() or one_line(error)
        print(f"MPS did not start ({reason}): the runs take turns on the GPU", flush=True)
        return False
    print("MPS was started for this sweep and ends with it", flush=True)
    return True


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


def _remove(variables: Sequence[str]) -> None:
    for name in variables:
        os.environ.pop(name, None)
