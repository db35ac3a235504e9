"""TensorBoard event files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smope.trackers.base import Matrix, Tracker, numbers, pictures, task_values


class TensorBoardTracker(Tracker):
    """Writes event files into tensorboard/ of the run directory: `tensorboard --logdir RUN`.

    steps: whether to log every training step (step/...), not only epochs (train/...).
    """

    def __init__(self, steps: bool = True) -> None:
        self.wants_steps = steps

    def start(self, config: Mapping[str, Any], run_dir: Path, name: str, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.report(shlex.join(["tensorboard", "--logdir", str(run_dir / "tensorboard")]))
        self._run_dir, self._config = run_dir, config
        self._writer = SummaryWriter(run_dir / "tensorboard", purge_step=step + 1 if step else None)
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```", step)

    def log_steps(self, rows: Sequence[Mapping[str, float]], first: int) -> None:
        for step, row in enumerate(rows, first):
            for key, value in row.items():
                self._writer.add_scalar(f"step/{key}", value, step)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        for key, value in numbers(values).items():
            self._writer.add_scalar(f"train/{key}", value, step)

    def log_experts(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(f"experts/{key}", value, step)

    def end_task(self, matrix: Matrix, scores: Mapping[str, Any], step: int) -> None:
        for key, value in task_values(matrix, scores).items():
            self._writer.add_scalar(key, value, step)
        for key, image in pictures(self.draw, matrix, self._run_dir, self._config).items():
            self._writer.add_image(key, image, step, dataformats="HWC")
        self._writer.flush()

    def finish(self, scores: Mapping[str, Any], status: str) -> None:
        self._writer.close()
