"""When a run writes checkpoints, what they hold of a phase under way, and how that comes back.

checkpoint.py has the file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from smope.methods.base import Method
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from smope.training.checkpoint import Checkpoint, Within, save_checkpoint
from smope.training.history import History
from smope.training.phase import RunningPhase
from smope.training.randomness import generator_states, restore_generators
from smope.training.settings import TrainerSettings


class CheckpointWriter:
    """Writes the checkpoints of a run and knows when the next one is due.

    Attributes:
        position: of the last checkpoint that was written or restored: tasks done and training steps
            into the next task; (0, 0) before the first.
    """

    def __init__(
        self, method: Method, stream: Stream, settings: TrainerSettings, device: torch.device
    ) -> None:
        self.position = (0, 0)
        self._method = method
        self._stream = stream
        self._settings = settings
        self._device = device
        self._written_at = time.perf_counter()

    @property
    def at_boundary(self) -> bool:
        """Whether the last checkpoint was written at the end of a task."""
        tasks, steps = self.position
        return tasks > 0 and steps == 0

    def is_due(self, position: int) -> bool:
        """Whether a checkpoint is due `position` steps into the task, by steps or by minutes."""
        steps, minutes = self._settings.checkpoint_steps, self._settings.checkpoint_minutes
        if steps is not None and position % steps == 0:
            return True
        return minutes is not None and time.perf_counter() - self._written_at >= 60 * minutes

    def write(
        self,
        directory: RunDirectory,
        history: History,
        context: Mapping[str, Any],
        running: RunningPhase | None = None,
    ) -> None:
        """Write a checkpoint.

        Args:
            directory: the run.
            history: what the run has measured.
            context: plain JSON that the checkpoint keeps.
            running: the phase under way; None between two tasks.

        Raises:
            OSError: it cannot be written; older checkpoints are untouched.
        """
        tasks_done = len(history.accuracy_matrix)
        within = None if running is None else state_within(running, self._device)
        save_checkpoint(
            directory, self._method, self._stream, tasks_done, history.as_dict(), within, context
        )
        self.position = (tasks_done, running.position if running else 0)
        self._written_at = time.perf_counter()


def state_within(running: RunningPhase, device: torch.device) -> Within:
    """What a checkpoint within a task holds beside the method's state.

    Args:
        running: the phase under way.
        device: its generator is part of the state.

    Returns:
        The state of optimizer, sums of losses, gradient scaler and all global generators.
    """
    tensors, scaler = running.state()
    generators, others = generator_states(device)
    named = {f"random.{name}": state for name, state in generators.items()}
    return Within(running.position, tensors | named, {"scaler": scaler, "random": others})


def restore_within(running: RunningPhase, checkpoint: Checkpoint, device: torch.device) -> None:
    """Bring a phase that was begun again to where a checkpoint was written.

    Args:
        running: the phase, at its first step.
        checkpoint: one that was written within this phase.
        device: its generator is restored.
    """
    within = checkpoint.within
    assert within is not None
    running.method.load_trained_state(checkpoint.state)
    running.load(within.tensors, within.values["scaler"], within.steps)
    states = {key.removeprefix("random."): value for key, value in within.tensors.items()}
    restore_generators(states, within.values["random"], device)
