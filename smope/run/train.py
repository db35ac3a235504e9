"""One run from its configuration to its run directory."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smope.config.config import Config
from smope.console.colour import coloured_matrix
from smope.console.progress import Progress
from smope.console.tables import cost_table, matrix_table, score_lines
from smope.distributed import collectives, torchrun
from smope.methods._shared.frozen_hash import frozen_sha256
from smope.report.live_pictures import live_pictures
from smope.run.artefact import write_model
from smope.run.build import Experiment
from smope.run.dry_run import summary
from smope.run.memory_advice import memory_advised
from smope.run.prepare import prepare
from smope.run.record import run_facts
from smope.run.resume import context, follow_back, go_back
from smope.storage.run_directory import FORMAT_VERSION, RunDirectory
from smope.streams.stream import import_avalanche
from smope.trackers.base import Guarded, Tracker
from smope.training.device import resolve_device
from smope.training.history import History
from smope.training.trainer import Trainer


class EndEarly(Exception):
    """Raised by Part.after_task: this run is not worth going on with."""


@dataclass(frozen=True)
class Part:
    """The first `tasks` tasks of a stream alone, nothing printed: what a search runs of a
    configuration.

    after_task: hears of what was measured after each task, and may raise EndEarly. note: goes into
    run.json.
    """

    tasks: int
    after_task: Callable[[History], object]
    note: Mapping[str, Any]


def train(
    config: Config, run_dir: Path, resume: bool = False, part: Part | None = None
) -> dict[str, Any]:
    """Train as configured and write the run directory; returns the content of run.json.

    The directory is made once everything is built, so that a mistake leaves nothing behind. With
    `resume`, `run_dir` holds an interrupted run, which goes on from its last checkpoint. With
    `part`, only that is run. Of the processes that torchrun has started all train, and the first
    one writes; the others return no more than the numbers.
    """
    if torchrun.world_size() > 1:
        import_avalanche()
    with collectives.joined(resolve_device(config.trainer["device"])):
        if not collectives.is_first():
            return _follow(config, RunDirectory(run_dir), resume)
        if resume:
            return _resume(config, RunDirectory.open(run_dir, "resume"), part)
        RunDirectory.check_free(run_dir)
        experiment, trainer = _prepare_together(config, part.tasks if part else None)
        directory = RunDirectory.create(run_dir, config.to_yaml())
        with directory.locked():
            return _train(experiment, trainer, directory, run_facts(experiment, trainer), part=part)


def _resume(config: Config, directory: RunDirectory, part: Part | None) -> dict[str, Any]:
    record = directory.read_record()
    if collectives.from_first(record.get("status") == "finished"):
        print(f"{directory.path} is finished already: nothing to resume")
        return record
    with directory.locked():
        experiment, trainer = _prepare_together(config, part.tasks if part else None)
        facts = run_facts(experiment, trainer)
        return _train(
            experiment, trainer, directory, facts, go_back(trainer, config, directory), part
        )


def _follow(config: Config, directory: RunDirectory, resume: bool) -> dict[str, Any]:
    """The part in a run of a process that is not the first one."""
    if resume and collectives.from_first(False):
        return directory.read_record()
    _, trainer = _prepare_together(config)
    if resume:
        follow_back(trainer)
    with memory_advised(trainer), trainer.interruption.watching():
        trainer.fit()
    return trainer.history.record()


def _prepare_together(config: Config, tasks: int | None = None) -> tuple[Experiment, Trainer]:
    """`prepare`, in every process; UserError where they would not train the same network on the
    same images.
    """
    with collectives.in_turns():
        experiment, trainer = prepare(config, tasks)
    if collectives.world() > 1:
        weights, images = frozen_sha256(trainer.method), experiment.stream.identity
        facts = {
            "the configuration": config.config_hash,
            "backbone.weights": weights,
            "stream.root": images,
        }
        collectives.require_same(facts)
    return experiment, trainer


def _train(
    experiment: Experiment,
    trainer: Trainer,
    directory: RunDirectory,
    facts: dict[str, Any],
    said: Sequence[str] = (),
    part: Part | None = None,
) -> dict[str, Any]:
    progress = Progress(directory.log, quiet=part is not None)
    trainer.directory, trainer.progress, trainer.context = (
        directory,
        progress,
        context(trainer, experiment.config),
    )
    progress.line(summary(experiment))
    progress.line(f"writing to {directory.path}")
    for line in said:
        progress.line(line)

    def write(status: str) -> dict[str, Any]:
        record = {
            "format_version": FORMAT_VERSION,
            "status": status,
            **facts,
            **trainer.history.record(),
        }
        if part is not None:
            record["part"] = {"first_tasks": part.tasks, **part.note}
        record["cost"] = {**facts["cost"], **trainer.history.cost()}
        directory.write_record(record)
        return record

    def task_done() -> None:
        keep(write("running"))
        if part is not None:
            part.after_task(trainer.history)

    def keep(record: dict[str, Any]) -> None:
        if part is None:  # which is for choosing settings, not for use
            write_model(directory, trainer.method, record)

    record = write("running")
    # the process before may have been killed between its checkpoint and this file
    if trainer.at_boundary:
        keep(record)
    trainer.tracker = _start(experiment, directory, progress, trainer.history.place)
    status = "finished"
    try:
        with memory_advised(trainer), trainer.interruption.watching():
            trainer.fit(on_task_end=task_done)
        _look_at_frozen_weights(trainer, facts, progress)
        record = write(status)
    except EndEarly:
        status = "ended early"
        return write(status)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(OSError):  # a full disk must not hide what went wrong
            write(status)
        if part is None:
            with suppress(OSError):
                progress.line(
                    f"stopped; continue with: smope train {shlex.quote(f'resume={directory.path}')}"
                )
        raise
    finally:
        # last: it may take the record with it
        trainer.tracker.finish(trainer.history.scores(), status)
    _tell(record, directory, progress)
    return record


def _tell(record: Mapping[str, Any], directory: RunDirectory, progress: Progress) -> None:
    """The numbers of a finished run."""
    progress.line("")
    progress.line(f"accuracy on each task's {record['evaluated_on']} images, in percent")
    progress.line(
        matrix_table(record["accuracy_matrix"]), coloured_matrix(record["accuracy_matrix"])
    )
    progress.line("")
    progress.line(score_lines(record))
    progress.line("")
    progress.line(cost_table(record["cost"]))
    progress.line(f"{sum(record['seconds']['per_task']):.0f} s; numbers in {directory.record}")
    progress.line(f"a page with pictures: smope report {shlex.quote(str(directory.path))}")


def _look_at_frozen_weights(trainer: Trainer, facts: dict[str, Any], progress: Progress) -> None:
    """Note in run.json what the frozen weights are after training; a method that changed them is
    told of.
    """
    weights = facts["frozen_weights"]
    weights["trained"] = frozen_sha256(trainer.method)
    if weights["trained"] != weights["loaded"]:
        name = type(trainer.method).__name__
        progress.line(f"{name} has changed weights of the frozen backbone: do not use this run")


def _start(
    experiment: Experiment, directory: RunDirectory, progress: Progress, step: int
) -> Tracker:
    """The tracker, started; one that cannot start, or fails later, is done without, which is said
    once.
    """
    experiment.tracker.draw = live_pictures
    tracker = Guarded(experiment.tracker, progress.line)
    tracker.start(experiment.config.as_dict(), directory.path, experiment.config.name, step)
    return tracker
