"""Recognises that memory ran out, and says which settings would need less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from smope.distributed import collectives
from smope.training.settings import TrainerSettings
from smope.training.trainer import Trainer

OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory")


@contextmanager
def memory_advised(trainer: Trainer) -> Iterator[None]:
    """Turn running out of memory in the block into a MemoryError with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(_memory_advice(trainer)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch (on any device), numpy or Python means that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


def _memory_advice(trainer: Trainer) -> str:
    settings = trainer.settings
    if trainer.method.training:
        advice = _training_advice(trainer, settings)
    else:
        advice = f"continue with a smaller trainer.eval_batch_size than {settings.eval_batch_size}"
    return f"out of memory on {trainer.device}: {advice}, or continue on a device with more memory"


def _training_advice(trainer: Trainer, settings: TrainerSettings) -> str:
    """What needs less memory in training, the cheapest first. A resumed run may change
    these settings, up to the size of the batch.
    """
    options: list[str] = []
    if trainer.loader.on_device.bytes:
        options.append("with trainer.images_on_device=false")
    if not settings.activation_checkpointing:
        options.append("with trainer.activation_checkpointing=true")
    parts = 2 * settings.gradient_accumulation_steps
    can_split = trainer.method.needs_whole_batch() is None
    if can_split and settings.batch_size >= parts * collectives.world():
        options.append(f"with trainer.gradient_accumulation_steps={parts}")
    new_run = f"start a new run with a smaller trainer.batch_size than {settings.batch_size}"
    return ", ".join([f"continue {options[0]}", *options[1:], new_run]) if options else new_run
