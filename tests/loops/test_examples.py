"""The programs of examples/ as a user starts them. They are in a folder of their own and no part of
the package, because a user reads and copies them; benchmarks/ measures.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def accuracies(example: str, folder: Path) -> list[float]:
    """The numbers of the last line that an example prints. It leaves no file behind."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "examples" / example],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not os.listdir(folder)
    line = result.stdout.splitlines()[-1].rpartition(": ")[2]
    return [float(word) for word in line.split()]


@pytest.mark.slow
def test_plain_pytorch(tmp_path: Path) -> None:
    values = accuracies("plain_pytorch.py", tmp_path)
    assert len(values) == 5
    assert sum(values) / 5 > 0.6, "ten classes: chance is 0.1"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("lightning"), reason="needs lightning")
def test_lightning(tmp_path: Path) -> None:
    first, second = accuracies("lightning_loop.py", tmp_path)
    assert first + second > 1.2, "ten classes: chance is 0.1 for each task"
