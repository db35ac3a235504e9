"""The tests of interruption pass where Ctrl-C is ignored, as in `make test &` and under nohup."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="a process has no signals to inherit there")
def test_interruption_where_sigint_is_ignored() -> None:
    tests = Path(__file__).with_name("test_interruption.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", tests]
    done = subprocess.run(
        list(map(str, command)),
        cwd=tests.parents[2],
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode == 0, done.stdout
