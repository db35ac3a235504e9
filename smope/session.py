"""One run from its configuration to its run directory."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smope import launch, parallel
from smope.build import Experiment, build
from smope.config import Config, chosen_name
from smope.errors import UserError
from smope.methods.frozen import frozen_sha256
from smope.metrics.cost import count_flops, count_parameters, stored_bytes
from smope.planning.workload import count_training
from smope.report.progress import Progress
from smope.report.tables import cost_table, matrix_table, score_lines
from smope.report.terminal import coloured_matrix
from smope.report.trackers import Guarded, Tracker
from smope.resuming import context, follow_back, go_back
from smope.runs import FORMAT_VERSION, RunDirectory, versions
from smope.serving.artefact import write_model
from smope.streams.base import import_avalanche
from smope.training.device import float32_products, resolve_device
from smope.training.history import History
from smope.training.trainer import Trainer


class EndEarly(Exception):
    """Raised by Part.after_task: this run is not worth going on with."""


@dataclass(frozen=True)
class Part:
    """The first `tasks` tasks of a stream alone, nothing printed: what a search runs of a configuration.

    after_task: hears of what was measured after each task, and may raise EndEarly. note: goes into run.json.
    """

    tasks: int
    after_task: Callable[[History], object]
    note: Mapping[str, Any]


def train(config: Config, run_dir: Path, resume: bool = False, part: Part | None = None) -> dict[str, Any]:
    """Train as configured and write the run directory; returns the content of run.json.

    The directory is made once everything is built, so that a mistake leaves nothing behind. With `resume`, `run_dir`
    holds an interrupted run, which goes on from its last checkpoint. With `part`, only that is run. Of the processes
    that torchrun has started all train, and the first one writes; the others return no more than the numbers.
    """
    if launch.world_size() > 1:
        import_avalanche()
    with parallel.joined(resolve_device(config.trainer["device"])):
        if not parallel.is_first():
            return _follow(config, RunDirectory(run_dir), resume)
        if resume:
            return _resume(config, RunDirectory.open(run_dir, "resume"), part)
        RunDirectory.check_free(run_dir)
        experiment, trainer = _prepare_together(config, part.tasks if part else None)
        directory = RunDirectory.create(run_dir, config.to_yaml())
        with directory.locked():
            return _train(experiment, trainer, directory, _facts(experiment, trainer), part=part)


def _resume(config: Config, directory: RunDirectory, part: Part | None) -> dict[str, Any]:
    record = directory.read_record()
    if parallel.from_first(record.get("status") == "finished"):
        print(f"{directory.path} is finished already: nothing to resume")
        return record
    with directory.locked():
        experiment, trainer = _prepare_together(config, part.tasks if part else None)
        facts = _facts(experiment, trainer)
        return _train(experiment, trainer, directory, facts, go_back(trainer, config, directory), part)


def _follow(config: Config, directory: RunDirectory, resume: bool) -> dict[str, Any]:
    """The part in a run of a process that is not the first one."""
    if resume and parallel.from_first(False):
        return directory.read_record()
    _, trainer = _prepare_together(config)
    if resume:
        follow_back(trainer)
    with _advised(trainer), trainer.interruption.watching():
        trainer.fit()
    return trainer.history.record()


def _prepare_together(config: Config, tasks: int | None = None) -> tuple[Experiment, Trainer]:
    """`prepare`, in every process; UserError where they would not train the same network on the same images."""
    with parallel.in_turns():
        experiment, trainer = prepare(config, tasks)
    if parallel.world() > 1:
        weights, images = frozen_sha256(trainer.method), experiment.stream.identity
        facts = {"the configuration": config.config_hash, "backbone.weights": weights, "stream.root": images}
        parallel.require_same(facts)
    return experiment, trainer


def prepare(config: Config, tasks: int | None = None) -> tuple[Experiment, Trainer]:
    """The objects of a run, or of its first `tasks` tasks with a method made for them all, and its trainer.

    MemoryError, saying what is too large, where there is no room for them.
    """
    try:
        experiment = build(config)
        if tasks is not None:
            experiment = _first_tasks(experiment, tasks)
        return experiment, make_trainer(experiment)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise MemoryError(
            "out of memory before training: backbone, experts and class statistics do not fit; choose a smaller "
            "backbone, method.num_experts or method.centroids, or a device with more memory"
        ) from error


def _first_tasks(experiment: Experiment, tasks: int) -> Experiment:
    stream = experiment.stream
    if tasks > len(stream.tasks):
        raise UserError(
            f"first_tasks={tasks}: stream {stream.name} has {len(stream.tasks)} tasks; ask for as many or less"
        )
    return replace(experiment, stream=replace(stream, tasks=stream.tasks[:tasks]))


def make_trainer(experiment: Experiment) -> Trainer:
    """The trainer of an experiment, its method on the device and in the precision of the settings."""
    seed, settings = experiment.config.seed, experiment.settings
    return Trainer(experiment.method, experiment.stream, settings, seed=seed, device=experiment.device)


def _train(
    experiment: Experiment,
    trainer: Trainer,
    directory: RunDirectory,
    facts: dict[str, Any],
    said: Sequence[str] = (),
    part: Part | None = None,
) -> dict[str, Any]:
    progress = Progress(directory.log, quiet=part is not None)
    trainer.directory, trainer.progress, trainer.context = directory, progress, context(trainer, experiment.config)
    progress.line(summary(experiment))
    progress.line(f"writing to {directory.path}")
    for line in said:
        progress.line(line)

    def write(status: str) -> dict[str, Any]:
        record = {"format_version": FORMAT_VERSION, "status": status, **facts, **trainer.history.record()}
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
    if trainer.at_boundary:  # the process before may have been killed between its checkpoint and this file
        keep(record)
    trainer.tracker = _start(experiment, directory, progress, trainer.history.place)
    status = "finished"
    try:
        with _advised(trainer), trainer.interruption.watching():
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
                progress.line(f"stopped; continue with: smope train {shlex.quote(f'resume={directory.path}')}")
        raise
    finally:
        trainer.tracker.finish(trainer.history.scores(), status)  # last: it may take the record with it
    _tell(record, directory, progress)
    return record


def _tell(record: Mapping[str, Any], directory: RunDirectory, progress: Progress) -> None:
    """The numbers of a finished run."""
    progress.line("")
    progress.line(f"accuracy on each task's {record['evaluated_on']} images, in percent")
    progress.line(matrix_table(record["accuracy_matrix"]), coloured_matrix(record["accuracy_matrix"]))
    progress.line("")
    progress.line(score_lines(record))
    progress.line("")
    progress.line(cost_table(record["cost"]))
    progress.line(f"{sum(record['seconds']['per_task']):.0f} s; numbers in {directory.record}")
    progress.line(f"a page with pictures: smope report {shlex.quote(str(directory.path))}")


@contextmanager
def _advised(trainer: Trainer) -> Iterator[None]:
    """MemoryError that says what would need less, where there is no memory left for the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise MemoryError(_memory_advice(trainer)) from error


def _out_of_memory(error: BaseException) -> bool:
    """Whether torch (on whatever device), numpy or Python found no memory: torch says so in words."""
    words = r"out of memory|not enough memory|can't allocate memory"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))


def _memory_advice(trainer: Trainer) -> str:
    settings, device = trainer.settings, trainer.device
    if trainer.method.training:
        advice = f"start a new run with a smaller trainer.batch_size than {settings.batch_size}"
        parts = 2 * settings.gradient_accumulation_steps
        if trainer.method.needs_whole_batch() is None and settings.batch_size >= parts * parallel.world():
            advice = f"with trainer.gradient_accumulation_steps={parts}, {advice}"
            advice = f"continue {advice}" if settings.activation_checkpointing else advice
        if not settings.activation_checkpointing:
            advice = f"continue with trainer.activation_checkpointing=true, {advice}"
    else:
        advice = f"continue with a smaller trainer.eval_batch_size than {settings.eval_batch_size}"
    return f"out of memory on {device}: {advice}, or continue on a device with more memory"


def _look_at_frozen_weights(trainer: Trainer, facts: dict[str, Any], progress: Progress) -> None:
    """Note in run.json what the frozen weights are after training; a method that changed them is told of."""
    weights = facts["frozen_weights"]
    weights["trained"] = frozen_sha256(trainer.method)
    if weights["trained"] != weights["loaded"]:
        name = type(trainer.method).__name__
        progress.line(f"{name} has changed weights of the frozen backbone: do not use this run")


def _start(experiment: Experiment, directory: RunDirectory, progress: Progress, step: int) -> Tracker:
    """The tracker, started; one that cannot start, or fails later, is done without, which is said once."""
    tracker = Guarded(experiment.tracker, progress.line)
    tracker.start(experiment.config.as_dict(), directory.path, experiment.config.name, step)
    return tracker


def _facts(experiment: Experiment, trainer: Trainer) -> dict[str, Any]:
    """The part of run.json that is known before training; of the method as it was built, nothing restored yet."""
    config, stream, method = experiment.config, experiment.stream, experiment.method
    return {
        "config": config.as_dict(),
        "config_hash": config.config_hash,
        "seed": config.seed,
        "method": chosen_name(config.method["_target_"]),
        "stream": {
            "name": stream.name,
            "content_hash": stream.content_hash,
            "identity": stream.identity,
            "skipped_images": list(stream.skipped),
            **stream.facts,
        },
        "class_order": list(stream.class_order),
        "class_names": list(stream.class_names),
        "tasks": [
            {"name": task.name, "classes": list(task.classes), "train": len(task.train), "test": len(task.test)}
            for task in stream.tasks
        ],
        "evaluated_on": stream.evaluated_on,
        "backbone": experiment.backbone.identity.as_dict(),
        "frozen_weights": {"loaded": frozen_sha256(method), "trained": None},
        "trainable_parameters": count_parameters(method),
        "cost": {
            "trainable_parameters": count_parameters(method),
            "stored_state_bytes": stored_bytes(method),
            "gflops_per_image": _flops(trainer),
        },
        "device": str(experiment.device),
        "world_size": parallel.world(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_products": float32_products(),
        "versions": versions(),
    }


def _flops(trainer: Trainer) -> dict[str, Any]:
    with parallel.alone():  # an image costs what it costs, and the other processes do not count
        return count_flops(trainer.method, trainer.spans[0])


def describe(config: Config) -> str:
    """What a run would do, without training: its configuration, its parts, its tasks and its cost."""
    experiment = build(config)
    stream, trainer = experiment.stream, make_trainer(experiment)
    infer = count_flops(experiment.method, trainer.spans[0])["infer_gflops"]["torch"]
    lines = [config.to_yaml(), summary(experiment), "", f"{'task':>4}{'train':>8}{'test':>7}{'steps':>8}  classes"]
    for span, task in zip(trainer.spans, stream.tasks, strict=True):
        shown = ", ".join(task.class_names[:6]) + (
            f" and {len(task.classes) - 6} more" if len(task.classes) > 6 else ""
        )
        lines.append(f"{span.index + 1:>4}{len(task.train):>8}{len(task.test):>7}{trainer.steps(span):>8}  {shown}")
    phases = count_training(trainer)
    steps, batch = sum(phase.steps for phase in phases), experiment.settings.batch_size
    operations = batch * sum(phase.steps * phase.gflops for phase in phases)
    trained = [f"{phase.gflops:.2f} to train on ({phase.name}, {phase.tasks})" for phase in phases if phase.steps]
    lines += [
        "",
        f"GFLOPs of an image: {', '.join([f'{infer:.2f} to classify', *trained])}",
        f"cost of the run: {steps:,} training steps, {steps * batch:,} images, {operations / 1e3:,.1f} TFLOPs, "
        "and the passes for usage, statistics and evaluation; `smope plan` estimates its seconds",
        "nothing was trained or written (--dry-run)",
    ]
    return "\n".join(lines)


def summary(experiment: Experiment) -> str:
    """Two lines that say what is trained on what."""
    config, stream, backbone = experiment.config, experiment.stream, experiment.backbone
    parameters = count_parameters(experiment.method)
    together = f", {parallel.world()} processes" if parallel.world() > 1 else ""
    frozen, own = ("frozen", "prompt") if backbone.frozen else ("trained", "backbone")
    return (
        f"{type(experiment.method).__name__} on {stream.name}: {len(stream.class_names)} classes "
        f"in {len(stream.tasks)} tasks, seed {config.seed}, {experiment.device}{together}\n"
        f"backbone {backbone.identity.name} ({backbone.identity.source}), {backbone.image_size} px, {frozen}; "
        f"training {parameters['prompt']:,} {own} and {parameters['classifier']:,} classifier parameters"
    )
