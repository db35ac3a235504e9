"""How a run was started: the command, the commit of the user's code, the machine.

Nothing here fails: what cannot be read is None.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

COMMAND_VARIABLE = "SMOPE_COMMAND"  # the processes of a sweep inherit it
GIT_SECONDS = 3.0


@contextmanager
def launched_by(command: str) -> Iterator[None]:
    """Runs that start inside this block record `command` as theirs."""
    before = os.environ.get(COMMAND_VARIABLE)
    os.environ[COMMAND_VARIABLE] = command
    try:
        yield
    finally:
        os.environ.pop(COMMAND_VARIABLE, None)
        if before is not None:
            os.environ[COMMAND_VARIABLE] = before


def launch_facts() -> dict[str, Any]:
    """What run.json records of the present start.

    command: the typed command, quoted for a shell, or the Python call.
    directory: where it was started.
    git: commit, branch, and whether tracked files were changed; None outside a git repository.
    time: UTC, ISO 8601.
    host, processor: names.
    """
    return {
        "command": os.environ.get(COMMAND_VARIABLE),
        "directory": _working_directory(),
        "git": _git_state(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node() or None,
        "processor": _processor(),
    }


def _working_directory() -> str | None:
    """The current directory as valid text; None if it has been deleted."""
    try:
        return os.getcwd().encode(errors="replace").decode()
    except OSError:
        return None


def _git_state() -> dict[str, Any] | None:
    """The commit of the repository around the current directory."""
    commit = _git("rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
        "changed": None if status is None else bool(status),
    }


def _git(*arguments: str) -> str | None:
    """What a git command prints; None if it fails, is missing, or takes too long."""
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=GIT_SECONDS,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
        return answer.stdout.decode(errors="replace").strip()
    return None


def _processor() -> str | None:
    """The name of the processor, as precise as the system tells it."""
    if sys.platform == "linux":
        with suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    return platform.processor() or platform.machine() or None
