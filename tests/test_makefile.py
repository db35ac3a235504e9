"""What make says where the environment of the shell does not fit."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_venv_is_named_in_one_line(value: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "test"],
        cwd=ROOT,
        env={**os.environ, "VENV": value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "VENV is set and empty: unset VENV" in line
