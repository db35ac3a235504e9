"""Files that are never half there: atomic writes and locks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO


def lock_file(path: Path, *, wait: bool = False) -> IO[str] | None:
    """Open a file that stays there and take its lock, given back when it is closed; None where
    another process has it.

    Within one process a lock excludes nobody, and closing any file that is open at `path` gives it
    back.
    """
    file = path.open("a")
    if try_lock(file, path, wait=wait):
        return file
    file.close()
    return None


def try_lock(file: IO[str], path: Path, *, wait: bool = False) -> bool:
    """Take the lock of an open file; whether it, and nobody's successor to it, is this process's."""
    try:
        import fcntl
    except (
        ImportError
    ):  # not on Windows; nor, below, on file systems without locks: there is none then
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    # a process that ends deletes the file: the lock of a deleted one keeps nobody out
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, rename: readers see the old file or the new one, never a
    part.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
