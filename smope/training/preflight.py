"""What would fail in the middle of a training is refused before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from smope.distributed import collectives
from smope.errors import UserError
from smope.methods.base import Method, Phase, TaskSpan
from smope.streams.stream import Stream, Task
from smope.training.schedule import make_schedule
from smope.training.settings import TrainerSettings


def check_stream(method: Method, spans: Sequence[TaskSpan], name: str) -> None:
    """Check that the method can learn the stream.

    Args:
        method: what is trained.
        spans: the classes of each task.
        name: what the tasks are, for the error.

    Raises:
        UserError: it cannot, for instance since classes come again.
    """
    method.check_stream(spans)
    centroids = method.statistics.mean.shape[1]
    if centroids > 1 and any(span.repeats for span in spans):
        raise UserError(
            f"method.centroids must be 1 for {name}, where classes come again in "
            f"later tasks, got {centroids}; leave it at its default"
        )


def check_schedule(task: Task, phases: Sequence[Phase], settings: TrainerSettings) -> None:
    """Check that every phase of a task has steps, and a schedule over them.

    Args:
        task: the task; one that was learned elsewhere has no images, and is not trained.
        phases: its phases.
        settings: the batch size and the schedule.

    Raises:
        UserError: a batch is larger than the task, or frozen steps leave nothing to train.
    """
    if not len(task.train):
        return
    steps = len(task.train) // settings.batch_size
    if phases and steps == 0:
        raise UserError(
            f"trainer.batch_size={settings.batch_size} is larger than the {len(task.train)} "
            f"training images of task {task.index + 1}, so that no whole batch is left; "
            f"write trainer.batch_size=auto or {len(task.train)} at most"
        )
    for phase in phases:
        make_schedule(settings, phase.schedule_epochs, steps)


def check_batch_split(method: Method, stream: Stream, settings: TrainerSettings) -> None:
    """Check that a batch can be split among processes, and into parts taken one after the other.

    Args:
        method: may need a whole batch, or one process.
        stream: each process needs images of every task.
        settings: batch sizes and gradient accumulation.

    Raises:
        UserError: a batch must stay whole, or there are too few images.
    """
    world, parts = collectives.world(), settings.gradient_accumulation_steps
    steps = f"trainer.gradient_accumulation_steps={parts}"
    dependence = method.needs_whole_batch()
    if parts > 1 and dependence is not None:
        raise UserError(
            f"{steps}: with {dependence.setting} the loss of a batch is not the mean over its "
            f"parts; write trainer.gradient_accumulation_steps=1 or {dependence.instead}"
        )
    dependence = method.needs_one_process()
    if world > 1 and dependence is not None:
        raise UserError(
            f"{dependence.setting}: images depend on the others of their batch, which "
            f"{world} processes cannot divide; start one process, or write {dependence.instead}"
        )
    if settings.batch_size < world * parts:
        processes = "process" if world == 1 else "processes"
        raise UserError(
            f"trainer.batch_size={settings.batch_size} must be at least {world * parts}, an image "
            f"for each of {world} {processes} and {steps}; raise it, or lower what divides it"
        )
    if settings.eval_batch_size < world:
        raise UserError(
            f"trainer.eval_batch_size={settings.eval_batch_size} must be at least {world}, an "
            f"image for each process; raise it"
        )
    for task in stream.tasks:
        fewest = min(len(task.train), len(task.test))
        if 0 < fewest < world:
            raise UserError(
                f"stream: task {task.index + 1} of {stream.name} has {fewest} images to train on "
                f"or to be evaluated on, fewer than the {world} processes; start fewer"
            )
