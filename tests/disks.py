"""Small and read-only disks for tests: file systems in memory, where the machine lets them be
mounted.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of `size` (such as 256k) at `path`; the test is skipped where none may be
    mounted.
    """
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this machine has no mount command")
    if done.returncode:
        pytest.skip(f"no file system may be mounted here ({done.stderr.strip()})")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    """Change a mounted disk: `ro`, `rw` or `size=...`."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)
