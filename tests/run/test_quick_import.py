"""Quick imports leave the process as ordinary ones would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import smope

PROGRAM = """
import gc, sys
from smope.run.quick_import import quick_imports
{before}
with quick_imports():
    assert not gc.isenabled()
    import torch, timm
assert gc.isenabled()
assert "sklearn" not in sys.modules
assert ("wandb" in sys.modules) == {wandb}
assert sys.modules.get("wandb", "") is not None
import wandb
assert wandb.init
with quick_imports():
    assert gc.isenabled(), "nothing is left to import"
"""


@pytest.mark.parametrize("before", ["", "import wandb"])
def test_collection_and_wandb_are_there_afterwards(before: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(smope.__file__).parent.parent)}
    program = PROGRAM.format(before=before, wandb=bool(before))
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_dry_run_of_the_demo_imports_neither_scikit_learn_nor_wandb(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom smope.cli.main import main\n"
        "assert main(['train', '--dry-run', 'experiment=smoke']) == 0\n"
        "heavy = {'sklearn', 'scipy', 'pandas', 'wandb', 'torchmetrics', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(smope.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loading PyTorch and the images\n")
    assert not done.stderr
