"""Restoring an interrupted run: from which checkpoint, and what may have changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from smope.config.config import Config, read_config
from smope.config.identity import NOT_HASHED, flatten, may_move
from smope.config.value_types import shown
from smope.distributed import collectives
from smope.errors import UserError
from smope.storage.files import write_atomically
from smope.storage.run_directory import RunDirectory
from smope.training.checkpoint import Checkpoint, last_checkpoint
from smope.training.device import device_name, float32_products
from smope.training.trainer import Trainer


def restore_last_checkpoint(trainer: Trainer, config: Config, directory: RunDirectory) -> list[str]:
    """Restore the last checkpoint of a run that can be read, and clean up what came after it.

    Checkpoints that cannot be read are renamed, not deleted. metrics.csv loses the rows that will
    be written again. config.yaml gets the paths and devices of now. Other processes call
    receive_checkpoint() meanwhile.

    Args:
        trainer: continues from the checkpoint, or from the start if there is none.
        config: the run's configuration.
        directory: the run.

    Returns:
        Lines to print about what was done.

    Raises:
        UserError: the checkpoint was made with other settings, weights or images; nothing was
            changed.
    """
    unreadable: dict[Path, UserError] = {}
    checkpoint = last_checkpoint(directory, unreadable.__setitem__)
    if checkpoint is not None:
        _refuse_other_settings(directory, checkpoint.context.get("config", {}), config)
    collectives.from_first(checkpoint)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    directory.remove_leftovers()
    lines = []
    for path, error in unreadable.items():
        renamed = path.rename(path.with_suffix(".unreadable"))
        lines.append(f"{error}; renamed to {renamed.name}, looking for the one before")
    directory.checkpoints.mkdir(exist_ok=True)
    directory.drop_metrics_after(trainer.history.steps)
    return [*lines, *_save_moved(directory, config), *_start_lines(trainer, checkpoint)]


def receive_checkpoint(trainer: Trainer) -> None:
    """Restore the checkpoint that the first process has read; for all other processes."""
    checkpoint: Checkpoint | None = collectives.from_first(None)
    if checkpoint is not None:
        trainer.resume(checkpoint)


def context(trainer: Trainer, config: Config) -> dict[str, Any]:
    """What a checkpoint keeps beside its state.

    Args:
        trainer: its device is described.
        config: the run's configuration.

    Returns:
        Plain JSON: the configuration, and the process that computes.
    """
    return {
        "config": config.as_dict(),
        "config_hash": config.config_hash,
        "process": process(trainer.device),
    }


def process(device: torch.device) -> dict[str, Any]:
    """What decides about the last digits of the numbers that a process computes on `device`."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "float32_products": float32_products(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "processes": collectives.world(),
    }


def _refuse_other_settings(
    directory: RunDirectory, made_with: Mapping[str, Any], config: Config
) -> None:
    """UserError if a checkpoint was made with settings that decide about results and differ."""
    old, new = flatten(made_with), flatten(config.as_dict())
    changed = [
        f"{key}={shown(new[key])} (was {shown(value)})"
        for key, value in old.items()
        if key in new
        and new[key] != value
        and not may_move(key, new)
        and key.partition(".")[0] not in NOT_HASHED
    ]
    if changed:
        raise UserError(
            f"resume={directory.path}: config.yaml has changed since the checkpoint was written: "
            f"{', '.join(changed)}; put back what it was, or start a new run"
        )


def _save_moved(directory: RunDirectory, config: Config) -> list[str]:
    """Write what overrides changed into config.yaml, so that the next resume needs none."""
    old, new = flatten(read_config(directory.path)), flatten(config.as_dict())
    keys = [
        key
        for key in dict.fromkeys([*new, *old])
        if may_move(key, new) and old.get(key) != new.get(key)
    ]
    moved = [f"now with {key}={shown(new.get(key))} (was {shown(old.get(key))})" for key in keys]
    if moved:
        write_atomically(directory.config, config.to_yaml().encode())
    return moved


def _start_lines(trainer: Trainer, checkpoint: Checkpoint | None) -> list[str]:
    """Where the run continues, and what may change the last digits of its numbers from there."""
    if checkpoint is None:
        return ["there is no checkpoint to continue from: starting over"]
    if checkpoint.within is None:
        lines = [f"resuming after task {checkpoint.tasks_done}"]
    else:
        span = trainer.spans[checkpoint.tasks_done]
        lines = [
            f"resuming in task {span.index + 1} after {checkpoint.within.steps} of "
            f"{trainer.steps(span)} steps"
        ]
    old, new = checkpoint.context.get("process", {}), process(trainer.device)
    changed = [
        f"{key} {value} (was {old[key]})"
        for key, value in new.items()
        if key in old and old[key] != value
    ]
    if changed:
        lines.append(
            f"from here on with {', '.join(changed)}: numbers may differ in their last digits"
        )
    return lines
