"""One run in a process of its own, as every job of a sweep is.

A crash, a lack of memory or SIGKILL ends this run alone, its peak memory is its own, and torch has
no state of an earlier run. The processes are forked from a server that has imported everything, so
starting one takes no time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from smope.config.config import Config
from smope.errors import UserError
from smope.storage.sweep_manifest import last_line

POLL_SECONDS = 0.2  # between two looks whether the sweep has to stop


def run_apart(
    config: Config,
    run_dir: Path,
    *,
    resume: bool,
    log: Path,
    quiet: bool,
    stop_requested: Callable[[], bool],
) -> int:
    """Train in a process of its own.

    Args:
        config: The run's configuration.
        run_dir: Its directory.
        resume: Whether to continue the run that is there.
        log: Where output goes if `quiet`, and an error in any case. Deleted if the run succeeds.
        quiet: Whether to print nothing.
        stop_requested: Asked every POLL_SECONDS. Once it says yes, the run gets SIGTERM: it saves a
            checkpoint and ends.

    Returns:
        The exit code, 128 + its number for a signal, as in a shell.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    process = process_context().Process(
        target=_child,
        args=(
            config,
            run_dir.absolute(),
            resume,
            log.absolute() if quiet else None,
            log.absolute(),
            dict(os.environ),
        ),
    )
    process.start()
    terminated = False
    try:
        while process.is_alive():
            process.join(POLL_SECONDS)
            if not terminated and stop_requested():
                terminated = True
                process.terminate()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    code = process.exitcode or 0
    code = 128 - code if code < 0 else code
    _settle(log, code)
    return code


def stopped(code: int) -> bool:
    """Whether an exit code is that of a run that was stopped by a signal."""
    return code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def process_context() -> Any:
    """Processes from a server with all imports done; on Windows, without a server, new ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # joblib's workers have a method of their own, which the server's processes would look for
        # in vain
        multiprocessing.set_start_method("forkserver", force=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["smope.sweeps.server"])
    return context


def _settle(log: Path, code: int) -> None:
    """Have the log of a failed run end with its error, and delete the log of any other run."""
    if code == 0 or stopped(code):
        log.unlink(missing_ok=True)
    elif code < 128 and last_line(log) is None:
        log.write_text(f"smope: error: the process ended with exit code {code}\n", encoding="utf-8")
    elif code > 128:
        name = signal.Signals(code - 128).name
        hint = " (out of memory, or killed by hand)" if name == "SIGKILL" else ""
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\nsmope: error: the process was ended by {name}{hint}\n")


def _child(
    config: Config,
    run_dir: Path,
    resume: bool,
    output: Path | None,
    log: Path,
    environment: Mapping[str, str],
) -> None:
    """The body of the process."""
    os.environ.update(environment)
    with suppress(AttributeError, OSError):
        os.setpgid(0, 0)  # Ctrl-C reaches the sweep alone, which then stops this process once
    threading.Thread(target=_follow_parent, daemon=True).start()
    if output is not None:
        _redirect(output)
    try:
        from smope.run.train import train

        train(config, _as_shown(run_dir), resume=resume)
    except KeyboardInterrupt as stop:
        sys.exit(getattr(stop, "exit_code", 128 + signal.SIGINT))
    except Exception as error:
        _report(error, None if output is not None else log)
        sys.exit(2 if isinstance(error, UserError) else 1)


def _as_shown(path: Path) -> Path:
    """The directory as messages name it: relative to the current one if it is below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _follow_parent() -> None:
    """If the sweep is killed, save a checkpoint and stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _redirect(path: Path) -> None:
    """Everything that this process and its libraries print goes to a file."""
    with path.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _report(error: Exception, log: Path | None) -> None:
    """Write the traceback and, as last line, the error: to the log, or to where this process
    prints if `log` is None.
    """
    from smope.errors import one_line

    line = one_line(error) if isinstance(error, UserError | OSError | MemoryError) else repr(error)
    text = f"{''.join(traceback.format_exception(error))}\nsmope: error: {line}\n"
    if log is None:
        print(text, file=sys.stderr, flush=True)
    else:
        log.write_text(text, encoding="utf-8")
