"""Whether a run's batches can be divided: among processes (collectives.py), and into parts that
one takes in turn.
"""

from __future__ import annotations

from smope.distributed import collectives
from smope.errors import UserError
from smope.methods.base import Method
from smope.streams.stream import Stream
from smope.training.settings import TrainerSettings


def check_dividing(method: Method, stream: Stream, settings: TrainerSettings) -> None:
    """UserError, before anything is trained, where a batch must stay whole or has too few images."""
    world, parts = collectives.world(), settings.gradient_accumulation_steps
    steps = f"trainer.gradient_accumulation_steps={parts}"
    whole, one = method.needs_whole_batch(), method.needs_one_process()
    if parts > 1 and whole is not None:
        raise UserError(
            f"{steps}: with {whole.setting} the loss of an image depends on the others of its "
            f"batch, which must stay "
            f"whole; write trainer.gradient_accumulation_steps=1 or {whole.instead}"
        )
    if world > 1 and one is not None:
        raise UserError(
            f"{one.setting}: images depend on the others of their batch, which {world} processes "
            f"cannot divide; start "
            f"one process, or write {one.instead}"
        )
    if settings.batch_size < world * parts:
        raise UserError(
            f"trainer.batch_size={settings.batch_size} must be at least {world * parts}, an image "
            f"for each of {world} "
            f"{'process' if world == 1 else 'processes'} and {steps}; raise it, or lower what "
            f"divides it"
        )
    if settings.eval_batch_size < world:
        raise UserError(
            f"trainer.eval_batch_size={settings.eval_batch_size} must be at least {world}, an "
            f"image for each process; "
            "raise it"
        )
    for task in stream.tasks:
        fewest = min(len(task.train), len(task.test))
        if fewest < world:
            raise UserError(
                f"stream: task {task.index + 1} of {stream.name} has {fewest} images to train on "
                f"or to be evaluated "
                f"on, fewer than the {world} processes; start fewer"
            )
