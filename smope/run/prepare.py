"""The objects of a run and their trainer, or advice where there is no memory for them."""

from __future__ import annotations

from dataclasses import replace

from smope.config.config import Config
from smope.errors import UserError
from smope.run.build import Experiment, build
from smope.run.memory_advice import is_out_of_memory
from smope.streams.stream import Stream
from smope.training.trainer import Trainer


def prepare(
    config: Config, tasks: int | None = None, stream: Stream | None = None
) -> tuple[Experiment, Trainer]:
    """Build a run.

    Args:
        config: the run's configuration.
        tasks: only the first so many tasks of the stream; the method is still made for all.
        stream: a stream to use in the place of the configured one.

    Returns:
        The objects of the run, and their trainer.

    Raises:
        UserError: something does not fit together.
        MemoryError: there is no memory for them; the message says what is too large.
    """
    try:
        experiment = build(config, stream)
        if tasks is not None:
            experiment = _first_tasks(experiment, tasks)
        return experiment, make_trainer(experiment)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            "out of memory before training: backbone, experts and class statistics do not fit; "
            "choose a smaller backbone, method.num_experts or method.centroids, or a device with "
            "more memory"
        ) from error


def _first_tasks(experiment: Experiment, tasks: int) -> Experiment:
    stream = experiment.stream
    if tasks > len(stream.tasks):
        raise UserError(
            f"first_tasks={tasks}: stream {stream.name} has {len(stream.tasks)} tasks; ask for as "
            f"many or less"
        )
    return replace(experiment, stream=replace(stream, tasks=stream.tasks[:tasks]))


def make_trainer(experiment: Experiment) -> Trainer:
    """The trainer of an experiment; it moves the method to the device."""
    seed, settings = experiment.config.seed, experiment.settings
    return Trainer(
        experiment.method, experiment.stream, settings, seed=seed, device=experiment.device
    )
