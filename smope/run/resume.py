"""Going back to where an interrupted run was: to which checkpoint, and what may have changed
since.
"""

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
from smope.training.device import float32_products
from smope.training.trainer import Trainer


def go_back(trainer: Trainer, config: Config, directory: RunDirectory) -> list[str]:
    """Have `trainer` go on from the run's last checkpoint that can be read, or from the start where
    there is none.

    What cannot be read is renamed, not deleted; metrics.csv loses what will be written again;
    config.yaml gets the places where things are now. Returns lines that tell about all this.
    UserError, with nothing changed, where the checkpoint was made with other settings, weights or
    images. Other processes meanwhile `follow_back`.
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
        aside = path.rename(path.with_suffix(".unreadable"))
        lines.append(f"{error}; renamed to {aside.name}, looking for the one before")
    directory.checkpoints.mkdir(exist_ok=True)
    directory.drop_metrics_after(trainer.history.steps)
    return [*lines, *_note_moved(directory, config), *_where(trainer, checkpoint)]


def follow_back(trainer: Trainer) -> None:
    """What another process than the first does while that one goes back: take the checkpoint that
    it has read.
    """
    checkpoint: Checkpoint | None = collectives.from_first(None)
    if checkpoint is not None:
        trainer.resume(checkpoint)


def context(trainer: Trainer, config: Config) -> dict[str, Any]:
    """What a checkpoint keeps beside its state: the configuration, and what else decides about the
    last digits.
    """
    return {
        "config": config.as_dict(),
        "config_hash": config.config_hash,
        "process": process(trainer.device),
    }


def process(device: torch.device) -> dict[str, Any]:
    """What of a process decides about the last digits of its numbers."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "float32_products": float32_products(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "processes": collectives.world(),
    }


def _refuse_other_settings(
    directory: RunDirectory, made_with: Mapping[str, Any], config: Config
) -> None:
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


def _note_moved(directory: RunDirectory, config: Config) -> list[str]:
    """Write into config.yaml what an override changed, so that it need not be said again."""
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


def _differs(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return key in old and key in new and old[key] != new[key]


def _where(trainer: Trainer, checkpoint: Checkpoint | None) -> list[str]:
    """Where the run goes on, and what of this process may change the last digits of its numbers."""
    if checkpoint is None:
        return ["there is no checkpoint to go on from: starting over"]
    if checkpoint.within is None:
        lines = [f"resuming after task {checkpoint.tasks_done}"]
    else:
        span = trainer.spans[checkpoint.tasks_done]
        lines = [
            f"resuming in task {span.index + 1} after {checkpoint.within.steps} of "
            f"{trainer.steps(span)} steps"
        ]
    old, new = checkpoint.context.get("process", {}), process(trainer.device)
    other = [f"{key} {new[key]} (was {old[key]})" for key in new if _differs(key, old, new)]
    if other:
        lines.append(
            f"from here on with {', '.join(other)}: numbers may differ in their last digits"
        )
    return lines
