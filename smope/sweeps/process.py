"""One run in a process of its own, as every job of a sweep is.

What happens to it (no memory, a crash, SIGKILL) stays there, its peak memory is its own, and
nothing of the run before is left in torch. The processes are forked from a server that has imported
everything already, so that each costs no more than its own run.
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

POLL = 0.2  # seconds between looks at whether the sweep is to stop


def run_apart(
    config: Config,
    run_dir: Path,
    *,
    resume: bool,
    log: Path,
    quiet: bool,
    asked: Callable[[], bool],
) -> int:
    """Train in a process of its own and return how that ended: 0, or as a shell says it (128 + the
    signal's number).

    Once `asked` says so, the run gets SIGTERM, after which it saves a checkpoint and ends. What it
    prints goes to `log` where it is to be `quiet`; without, only what it failed with does. Nothing
    is left of the log of a run that ended well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    process = _context().Process(
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
    told = False
    try:
        while process.is_alive():
            process.join(POLL)
            if not told and asked():
                told = True
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
    """Whether a run ended because it was asked to."""
    return code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def _context() -> Any:
    """Processes from a server with all imports done; where there is none (Windows), new ones."""
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
    """The log of a failure says in its last line what it was; other logs repeat train.log."""
    if code == 0 or stopped(code):
        log.unlink(missing_ok=True)
    elif code < 128 and last_line(log) is None:
        log.write_text(f"smope: error: the process ended with exit code {code}\n", encoding="utf-8")
    elif code > 128:
        name = signal.Signals(code - 128).name
        hint = " (the system was out of memory, or somebody did it)" if name == "SIGKILL" else ""
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
    """The process itself."""
    os.environ.update(environment)
    with suppress(AttributeError, OSError):
        os.setpgid(0, 0)  # Ctrl-C reaches the sweep alone, which then asks this process once
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
    """The directory relative to the current one where it lies below it, as messages name it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _follow_parent() -> None:
    """A sweep that is killed takes its runs with it: they save a checkpoint and stop."""
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
    """The traceback and, last, the error in a line: to the log, or where this process prints
    anyway.
    """
    from smope.errors import one_line

    line = one_line(error) if isinstance(error, UserError | OSError | MemoryError) else repr(error)
    text = f"{''.join(traceback.format_exception(error))}\nsmope: error: {line}\n"
    if log is None:
        print(text, file=sys.stderr, flush=True)
    else:
        log.write_text(text, encoding="utf-8")
