"""One run from its configuration to its run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from smope.build import Experiment, build
from smope.config import Config
from smope.metrics.cost import count_flops, count_parameters
from smope.report.progress import Progress
from smope.report.tables import matrix_table, score_lines
from smope.report.trackers import Tracker
from smope.runs import FORMAT_VERSION, RunDirectory, versions
from smope.training.checkpoint import list_checkpoints, read_checkpoint, restore
from smope.training.device import float32_products
from smope.training.history import History
from smope.training.trainer import Trainer


def train(config: Config, run_dir: Path, resume: bool = False) -> dict[str, Any]:
    """Train as configured and write the run directory; returns the content of run.json.

    The directory is made once everything is built, so that a mistake leaves nothing behind. With `resume`, `run_dir`
    holds an interrupted run, which goes on after its last finished task.
    """
    existing = RunDirectory.open(run_dir, "resume") if resume else None
    if existing is None:
        RunDirectory.check_free(run_dir)
    elif existing.read_record().get("status") == "finished":
        print(f"{run_dir} is finished already: nothing to resume")
        return existing.read_record()
    experiment = build(config)
    trainer = make_trainer(experiment)
    if existing is not None:
        _restore(trainer, existing)
    directory = existing or RunDirectory.create(run_dir, config.to_yaml())
    trainer.directory, trainer.progress = directory, Progress(directory.log)
    return _train(experiment, trainer, directory)


def make_trainer(experiment: Experiment) -> Trainer:
    """The trainer of an experiment, its method on the device and in the precision of the settings."""
    seed, settings = experiment.config.seed, experiment.settings
    return Trainer(experiment.method, experiment.stream, settings, seed=seed, device=experiment.device)


def _restore(trainer: Trainer, directory: RunDirectory) -> None:
    """Go back to the last checkpoint, or to the start where there is none yet."""
    checkpoints = list_checkpoints(directory)
    if checkpoints:
        checkpoint = read_checkpoint(checkpoints[-1])
        restore(trainer.method, trainer.stream, checkpoint)
        trainer.history = History(**checkpoint.history)
    directory.drop_metrics_from(len(trainer.history.accuracy_matrix))


def _train(experiment: Experiment, trainer: Trainer, directory: RunDirectory) -> dict[str, Any]:
    progress = trainer.progress
    facts = _facts(experiment)
    progress.line(summary(experiment))
    progress.line(f"writing to {directory.path}")
    done = len(trainer.history.accuracy_matrix)
    if done:
        progress.line(f"resuming after task {done}")

    def write(status: str) -> dict[str, Any]:
        record = {"format_version": FORMAT_VERSION, "status": status, **facts, **trainer.history.record()}
        directory.write_record(record)
        return record

    write("running")
    trainer.tracker = _start(experiment, directory, progress)
    try:
        trainer.fit(on_task_end=lambda: write("running"))
    except BaseException as error:
        write("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        progress.line(f"stopped; continue after the last finished task with: smope train resume={directory.path}")
        raise
    finally:
        trainer.tracker.finish(trainer.history.scores())
    record = write("finished")
    progress.line("")
    progress.line("accuracy on each task's test images, in percent")
    progress.line(matrix_table(record["accuracy_matrix"]))
    progress.line("")
    progress.line(score_lines(record))
    progress.line(f"{sum(trainer.history.seconds_per_task):.0f} s; numbers in {directory.record}")
    return record


def _start(experiment: Experiment, directory: RunDirectory, progress: Progress) -> Tracker:
    """The tracker, started; one that cannot start is done without, which is said once."""
    try:
        experiment.tracker.start(experiment.config.as_dict(), directory.path, experiment.config.name)
    except Exception as error:  # whatever a service answers must not cost a run
        progress.line(f"no tracking: {type(experiment.tracker).__name__} did not start ({error}); training goes on")
        return Tracker()
    return experiment.tracker


def _facts(experiment: Experiment) -> dict[str, Any]:
    """The part of run.json that is known before training."""
    config, stream, method = experiment.config, experiment.stream, experiment.method
    return {
        "config": config.as_dict(),
        "config_hash": config.config_hash,
        "seed": config.seed,
        "method": config.method["_target_"].rpartition(".")[0].rpartition(".")[2],
        "stream": {"name": stream.name, "content_hash": stream.content_hash},
        "class_order": list(stream.class_order),
        "class_names": list(stream.class_names),
        "tasks": [
            {"classes": list(task.classes), "train": len(task.train), "test": len(task.test)} for task in stream.tasks
        ],
        "evaluated_on": stream.evaluated_on,
        "backbone": experiment.backbone.identity.as_dict(),
        "trainable_parameters": count_parameters(method),
        "device": str(experiment.device),
        "threads": torch.get_num_threads(),
        "float32_products": float32_products(),
        "versions": versions(),
    }


def describe(config: Config) -> str:
    """What a run would do, without training: its configuration, its parts, its tasks and its cost."""
    experiment = build(config)
    stream, trainer = experiment.stream, make_trainer(experiment)
    flops = count_flops(experiment.method, trainer.spans[0])
    lines = [config.to_yaml(), summary(experiment), "", f"{'task':>4}{'train':>8}{'test':>7}{'steps':>8}  classes"]
    for span, task in zip(trainer.spans, stream.tasks, strict=True):
        shown = ", ".join(task.class_names[:6]) + (
            f" and {len(task.classes) - 6} more" if len(task.classes) > 6 else ""
        )
        lines.append(f"{span.index + 1:>4}{len(task.train):>8}{len(task.test):>7}{trainer.steps(span):>8}  {shown}")
    steps = sum(trainer.steps(span) for span in trainer.spans)
    images = steps * experiment.settings.batch_size
    lines += [
        "",
        f"cost of an image: {flops['inference'] / 1e9:.2f} GFLOPs to classify, "
        f"{flops['training'] / 1e9:.2f} to train on",
        f"cost of the run: {steps:,} training steps, {images:,} images, {images * flops['training'] / 1e12:,.1f} "
        "TFLOPs, and the passes for usage, statistics and evaluation",
        "nothing was trained or written (--dry-run)",
    ]
    return "\n".join(lines)


def summary(experiment: Experiment) -> str:
    """Two lines that say what is trained on what."""
    config, stream, backbone = experiment.config, experiment.stream, experiment.backbone
    parameters = count_parameters(experiment.method)
    return (
        f"{type(experiment.method).__name__} on {stream.name}: {len(stream.class_names)} classes "
        f"in {len(stream.tasks)} tasks, seed {config.seed}, {experiment.device}\n"
        f"backbone {backbone.identity.name} ({backbone.identity.source}), {backbone.image_size} px, frozen; "
        f"training {parameters['prompt']:,} prompt and {parameters['classifier']:,} classifier parameters"
    )
