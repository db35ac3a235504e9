"""Small runs of `smope train`, and what they leave behind."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from smope.cli.main import main

# On few digits next to nothing to compute: for the runs of which there have to be several
TINY = ["experiment=smoke", "backbone.image_size=8", "trainer.batch_size=16"]
QUICK = [*TINY, "method.blocks=[0,3]"]


def train(run_dir: Path, *overrides: str) -> Path:
    assert main(["train", *overrides, f"run_dir={run_dir}"]) == 0
    return run_dir


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))


def final_state(run_dir: Path) -> dict[str, Tensor]:
    return load_file(sorted((run_dir / "checkpoints").iterdir())[-1])


def losses(run_dir: Path) -> list[dict[str, str]]:
    """metrics.csv without how long it took."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "images_per_second"}
            for row in csv.DictReader(file)
        ]


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
