"""What a run would do, without training: `smope train --dry-run`."""

from __future__ import annotations

from collections.abc import Collection

from smope.config.config import Config
from smope.distributed import collectives
from smope.metrics.cost import count_flops, count_parameters
from smope.run.backbone_note import backbone_note
from smope.run.build import Experiment, build
from smope.run.prepare import make_trainer
from smope.run.unread_keys import unread_keys
from smope.streams.layouts.splits import describe_split
from smope.training.workload import count_training

CLASSES_SHOWN = 6


def describe(config: Config, given: Collection[str] = ()) -> str:
    """The configuration of a run, its parts, its tasks and its cost, for the terminal.

    Args:
        config: the run's configuration.
        given: the keys that the user set; those that change nothing are named.

    Returns:
        The text.
    """
    experiment = build(config)
    stream, trainer = experiment.stream, make_trainer(experiment)
    infer = count_flops(experiment.method, trainer.spans[0])["infer_gflops"]["torch"]
    lines = [
        experiment.config.to_yaml(),
        summary(experiment),
        "",
        f"{'task':>4}{'train':>8}{'test':>7}{'steps':>8}  classes",
    ]
    for span, task in zip(trainer.spans, stream.tasks, strict=True):
        classes = ", ".join(task.class_names[:CLASSES_SHOWN])
        if len(task.classes) > CLASSES_SHOWN:
            classes += f" and {len(task.classes) - CLASSES_SHOWN} more"
        lines.append(
            f"{span.index + 1:>4}{len(task.train):>8}{len(task.test):>7}{trainer.steps(span):>8}  "
            f"{classes}"
        )
    phases = count_training(trainer)
    steps, batch = sum(phase.steps for phase in phases), experiment.settings.batch_size
    operations = batch * sum(phase.steps * phase.gflops for phase in phases)
    trained = [
        f"{phase.gflops:.2f} to train on ({phase.name}, {phase.tasks})"
        for phase in phases
        if phase.steps
    ]
    lines += [
        "",
        f"GFLOPs of an image: {', '.join([f'{infer:.2f} to classify', *trained])}",
        f"cost of the run: {steps:,} training steps, {steps * batch:,} images, "
        f"{operations / 1e3:,.1f} TFLOPs, and the passes for usage, statistics and evaluation; "
        f"`smope plan` estimates its seconds",
        *filter(None, [backbone_note(config), unread_keys(given, experiment, trainer)]),
        "nothing was trained or written (--dry-run)",
    ]
    return "\n".join(lines)


def summary(experiment: Experiment) -> str:
    """Two lines: method, stream and device; backbone and trained parameters. A third one where the
    test images were drawn.
    """
    config, stream, backbone = experiment.config, experiment.stream, experiment.backbone
    parameters = count_parameters(experiment.method)
    processes = f", {collectives.world()} processes" if collectives.world() > 1 else ""
    state, trained = ("frozen", "prompt") if backbone.frozen else ("trained", "backbone")
    lines = (
        f"{type(experiment.method).__name__} on {stream.name}: {len(stream.class_names)} classes "
        f"in {len(stream.tasks)} tasks, seed {config.seed}, {experiment.device}{processes}\n"
        f"backbone {backbone.identity.name} ({backbone.identity.source}), {backbone.image_size} "
        f"px, {state}; training {parameters['prompt']:,} {trained} and "
        f"{parameters['classifier']:,} classifier parameters"
    )
    return "\n".join(filter(None, [lines, describe_split(stream.facts)]))
