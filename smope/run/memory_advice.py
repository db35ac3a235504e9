"""Running out of memory: recognising it, and saying which settings would need less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from smope.distributed import collectives
from smope.training.trainer import Trainer


@contextmanager
def memory_advised(trainer: Trainer) -> Iterator[None]:
    """MemoryError that says what would need less, where there is no memory left for the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(_memory_advice(trainer)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (on whatever device), numpy or Python found no memory: torch says so in words."""
    words = r"out of memory|not enough memory|can't allocate memory"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(re.search(words, str(error)))
    )


def _memory_advice(trainer: Trainer) -> str:
    settings, device = trainer.settings, trainer.device
    if trainer.method.training:
        advice = f"start a new run with a smaller trainer.batch_size than {settings.batch_size}"
        parts = 2 * settings.gradient_accumulation_steps
        if (
            trainer.method.needs_whole_batch() is None
            and settings.batch_size >= parts * collectives.world()
        ):
            advice = f"with trainer.gradient_accumulation_steps={parts}, {advice}"
            advice = f"continue {advice}" if settings.activation_checkpointing else advice
        if not settings.activation_checkpointing:
            advice = f"continue with trainer.activation_checkpointing=true, {advice}"
    else:
        advice = f"continue with a smaller trainer.eval_batch_size than {settings.eval_batch_size}"
    return f"out of memory on {device}: {advice}, or continue on a device with more memory"
