"""One run, from its configuration to its run directory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from smope.config.config import Config
from smope.console.progress import Progress
from smope.distributed import collectives, torchrun
from smope.methods._shared.frozen_hash import frozen_sha256
from smope.report.live_pictures import live_pictures
from smope.run.artefact import size_line
from smope.run.backbone_note import backbone_note
from smope.run.build import Experiment
from smope.run.dry_run import summary
from smope.run.explain import introduction, meaning
from smope.run.memory_advice import memory_advised
from smope.run.partial import EndEarly, PartialRun
from smope.run.prepare import prepare
from smope.run.record import RunRecord, run_facts
from smope.run.results import numbers, print_matrix
from smope.run.resume import (
    context,
    receive_checkpoint,
    restore_last_checkpoint,
)
from smope.run.unread_keys import unread_keys
from smope.storage.commands import resume_command
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import import_avalanche
from smope.trackers.base import Guarded, Tracker
from smope.training.device import resolve_device
from smope.training.outputs import Outputs
from smope.training.top_logits import top_logits_line
from smope.training.trainer import Trainer


def train(
    config: Config,
    run_dir: Path,
    resume: bool = False,
    partial: PartialRun | None = None,
    given: Collection[str] = (),
    explain: bool = False,
) -> dict[str, Any]:
    """Train as configured and write the run directory.

    The directory is made after everything is built, so a mistake leaves nothing behind. All
    processes that torchrun has started train; the first one writes.

    Args:
        config: the run's configuration.
        run_dir: a new directory, or with `resume` that of an interrupted run.
        resume: continue from the run's last checkpoint.
        partial: train on the first tasks only.
        given: the keys that the user set; those that change nothing are named at the start.
        explain: print what will happen and what the numbers mean, and no details.

    Returns:
        The content of run.json; in processes other than the first, its numbers alone.

    Raises:
        UserError: something does not fit together; nothing was trained or written.
        MemoryError: out of memory, with advice.
        OSError: the run directory cannot be written.
    """
    if torchrun.world_size() > 1:
        import_avalanche()
    with collectives.joined(resolve_device(config.trainer["device"])):
        if not collectives.is_first():
            return _train_along(config, RunDirectory(run_dir), resume)
        if resume:
            return _resume(config, RunDirectory.open(run_dir, "resume"), partial, explain)
        return _begin(config, run_dir, partial, given, explain)


def _begin(
    config: Config,
    run_dir: Path,
    partial: PartialRun | None,
    given: Collection[str],
    explain: bool,
) -> dict[str, Any]:
    """A new run."""
    RunDirectory.check_free(run_dir)
    experiment, trainer = _prepare_together(config, partial)
    directory = RunDirectory.create(run_dir, experiment.config.to_yaml())
    with directory.locked():
        facts = run_facts(experiment, trainer)
        unread = unread_keys(given, experiment, trainer)
        notes = [backbone_note(config), unread, trainer.compile_note]
        return _train(experiment, trainer, directory, facts, notes, partial, explain)


def _resume(
    config: Config, directory: RunDirectory, partial: PartialRun | None, explain: bool
) -> dict[str, Any]:
    """An interrupted run, from its last checkpoint."""
    record = directory.read_record()
    if collectives.from_first(record.get("status") == "finished"):
        print(f"{directory.path} is finished already: nothing to resume")
        return record
    with directory.locked():
        experiment, trainer = _prepare_together(config, partial)
        facts = run_facts(experiment, trainer, record.get("launches", []))
        restored = restore_last_checkpoint(trainer, experiment.config, directory)
        notes = [*restored, trainer.compile_note]
        return _train(experiment, trainer, directory, facts, notes, partial, explain)


def _train_along(config: Config, directory: RunDirectory, resume: bool) -> dict[str, Any]:
    """What a process other than the first does."""
    if resume and collectives.from_first(False):
        return directory.read_record()
    _, trainer = _prepare_together(config)
    if resume:
        receive_checkpoint(trainer)
    with memory_advised(trainer), trainer.interruption.watching():
        trainer.fit()
        trainer.reference_matrix()
    return trainer.history.record()


def _prepare_together(
    config: Config, partial: PartialRun | None = None
) -> tuple[Experiment, Trainer]:
    """`prepare` in every process. UserError if they would train different networks or images."""
    with collectives.in_turns():
        experiment, trainer = prepare(config, partial.tasks if partial else None)
    if collectives.world() > 1:
        collectives.require_same(
            {
                "the configuration": config.config_hash,
                "backbone.weights": frozen_sha256(trainer.method),
                "stream.root": experiment.stream.identity,
            }
        )
    return experiment, trainer


def _train(
    experiment: Experiment,
    trainer: Trainer,
    directory: RunDirectory,
    facts: dict[str, Any],
    notes: Sequence[str | None] = (),
    partial: PartialRun | None = None,
    explain: bool = False,
) -> dict[str, Any]:
    """Train, and write what is learned and measured. Notes are printed first."""
    progress = Progress(directory.log, quiet=partial is not None, brief=explain)
    short = top_logits_line(trainer.settings.record, trainer.stream)
    progress.detail(f"{summary(experiment)}\nwriting to {directory.path}")
    for text in filter(None, (*notes, short)):
        progress.line(text)
    if explain and not trainer.history.accuracy_matrix:
        progress.line(introduction(experiment, trainer))
    record = RunRecord(directory, trainer, facts, partial)
    record.begin()
    tracker = _start_tracker(experiment, directory, progress, trainer.history.tracker_step)
    trainer.outputs = Outputs(directory, progress, tracker)
    trainer.context = context(trainer, experiment.config)
    status = "failed"
    try:
        with memory_advised(trainer), trainer.interruption.watching():
            trainer.fit(on_task_end=record.end_task)
            record.measure_reference()
        if not record.check_frozen_weights():
            name = type(trainer.method).__name__
            progress.line(f"{name} has changed weights of the frozen backbone: do not use this run")
        status = "finished"
        content = record.write(status)
    except EndEarly:
        status = "ended early"
        return record.write(status)
    except BaseException as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(OSError):  # a full disk must not hide what went wrong
            record.write(status)
        if partial is None:
            with suppress(OSError):
                progress.line(f"stopped; continue with: {resume_command(directory.path)}")
        raise
    finally:
        # Last, since a tracker may upload run.json.
        tracker.finish(trainer.history.scores(), status)
    print_matrix(content, progress)
    for text in numbers(content, directory):
        progress.detail(text)
    if partial is None:
        progress.detail(size_line(trainer.method, trainer.settings.keep))
    if explain:
        progress.line(meaning(content))
    return content


def _start_tracker(
    experiment: Experiment, directory: RunDirectory, progress: Progress, step: int
) -> Tracker:
    """The tracker, started. If it fails now or later, that is printed once and the run continues
    without it.
    """
    experiment.tracker.draw = live_pictures
    experiment.tracker.report = progress.line
    tracker = Guarded(experiment.tracker, progress.line)
    tracker.start(experiment.config.as_dict(), directory.path, experiment.config.name, step)
    return tracker
