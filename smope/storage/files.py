"""Atomic writes and file locks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO


def lock_file(path: Path, *, wait: bool = False) -> IO[str] | None:
    """Open a file and lock it until it is closed. The file stays.

    A lock excludes other processes only. Closing any file that this process has open at `path`
    releases it.

    Args:
        path: The file; made if it does not exist.
        wait: Whether to wait for a process that holds the lock.

    Returns:
        The open file; None if another process holds the lock.
    """
    file = path.open("a")
    if try_lock(file, path, wait=wait):
        return file
    file.close()
    return None


def try_lock(file: IO[str], path: Path, *, wait: bool = False) -> bool:
    """Try to lock an open file.

    Args:
        file: The file.
        path: Where it was opened.
        wait: Whether to wait for a process that holds the lock.

    Returns:
        False if another process holds the lock, or if the file was deleted or replaced meanwhile.
    """
    try:
        import fcntl
    except ImportError:  # Windows; as on a file system without locks, below, nothing is locked
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    # a process that ends deletes the file, and the lock of a deleted file excludes nobody
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file, flush it to disk and rename it, so that no reader sees a part.

    Args:
        path: The file to write or replace.
        content: All of its bytes.
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
