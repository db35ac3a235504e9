"""Atomic writes and file locks."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from smope.errors import UserError


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


def try_lock(file: IO[Any], path: Path, *, wait: bool = False) -> bool:
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


def check_new_file(path: Path, key: str) -> None:
    """UserError unless a new file can be written at a path.

    Args:
        path: Where.
        key: What errors call it.
    """
    if path.exists() or path.is_symlink():
        raise UserError(f"{key}={path}: exists, and nothing is overwritten; name a new file")
    if not path.parent.is_dir():
        raise UserError(f"{key}={path}: there is no folder {path.parent}; make it, or name another")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{key}={path}: its folder cannot be written to; name a file elsewhere")


def unwritten(file: Path | str, error: OSError, more: str = "") -> OSError:
    """The error about a file that cannot be written, with what helps.

    Args:
        file: what the error calls it.
        error: what writing it raised.
        more: what helps beside that.
    """
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room" if is_full else "use a folder that can be written to"
    return OSError(f"{file}: cannot be written ({error.strerror or error}); {remedy}{more}")


def write_new(path: Path, content: bytes) -> None:
    """As write_atomically, but FileExistsError if there is a file already, which is untouched.

    Args:
        path: The file to write.
        content: All of its bytes.
    """
    writer = f"{os.getpid()}-{threading.get_native_id()}"  # several threads may write at a time
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        _write(temporary, content)
        try:
            os.link(temporary, path)  # unlike a renaming, it never replaces a file
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if path.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file, flush it to disk and rename it, so that no reader sees a part.

    Args:
        path: The file to write or replace.
        content: All of its bytes.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """As write_atomically, for files that belong together: all of them, or none where one fails.

    Args:
        contents: All bytes of each file.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            _write(temporary[path], content)
        for path in contents:
            temporary[path].replace(path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file and flush it to disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
