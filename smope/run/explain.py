"""What `smope train --explain` prints for somebody who meets a run for the first time: what will
happen and how long it takes, what its numbers mean, and what to type next. All of it is counted or
measured.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from smope.console.tables import reference_line, terminal_width
from smope.distributed import collectives
from smope.metrics.flops import light_copy
from smope.run.build import Experiment
from smope.run.results import way_out
from smope.storage.commands import command
from smope.training.device import available_cores
from smope.training.precision import evaluated_features
from smope.training.trainer import Trainer
from smope.training.workload import Workload, count

PASSES_TIMED = 3
LEAST_POINTS = 0.05  # what is printed as 0.0


def introduction(experiment: Experiment, trainer: Trainer) -> str:
    """What a run will do, and about how long it will take.

    Args:
        experiment: The parts of the run.
        trainer: Its trainer, before the first task. It classifies a few images of noise to be
            timed, which changes no number of the run.

    Returns:
        A few lines.
    """
    stream, backbone = experiment.stream, experiment.backbone
    names, tasks = stream.class_names, stream.tasks
    in_turn = sum(len(task.classes) for task in tasks) == len(names)
    with collectives.alone():  # the other processes do not explain
        work = count(trainer)
        seconds = _seconds(trainer, work)
    state = "stays as it is" if backbone.frozen else "learns too"
    shown = "shown" if experiment.method.revisits else "not shown"
    texts = (
        f"{type(experiment.method).__name__} learns the {len(names)} classes of {stream.name} in "
        f"{len(tasks)} tasks. Each task brings new {'classes' if in_turn else 'images'}; images of "
        f"earlier tasks are {shown} again.",
        f"The vision transformer ({backbone.identity.source}) {state}. Training takes "
        f"{work.steps:,} steps, all of it {about(seconds)} on this machine.",
    )
    return wrapped(filter(None, [*texts, _busy(trainer.device)])) + "\n"


def wrapped(texts: Iterable[str]) -> str:
    """Paragraphs in lines of the terminal's width, each from a line of its own."""
    return "\n".join(textwrap.fill(text, min(terminal_width(), 100)) for text in texts)


def _seconds(trainer: Trainer, work: Workload) -> float:
    """Seconds of a run: its operations, at the rate of classifying a batch here."""
    passes, referred = work.passes, trainer.settings.reference != "none"
    gflops = (
        work.train_gflops
        + work.eval_gflops
        + work.alignment_gflops
        + (passes.own + passes.recorded) * passes.gflops
        + referred * work.train_images * work.frozen_gflops
    )
    return gflops / work.infer_gflops * _image_seconds(trainer, work.batch)


def _image_seconds(trainer: Trainer, batch: int) -> float:
    """Seconds of classifying an image; the fastest of a few batches, the first of which warms up.

    The images come from a generator of their own, so that the run draws what it would have drawn.
    """
    method = light_copy(trainer.method).eval()
    method.assume_learned()  # as the operations are counted
    side = method.backbone.image_size
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    images = images.to(trainer.device)
    seconds = []
    for _ in range(1 + PASSES_TIMED):
        started = time.perf_counter()
        evaluated_features(method, images, trainer.settings.precision).sum().item()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:]) / batch


def _busy(device: torch.device) -> str:
    """That the time was measured beside other work on the processor; empty if it was not."""
    if device.type != "cpu" or not hasattr(os, "getloadavg"):
        return ""
    load, cores = os.getloadavg()[0], available_cores()
    if load <= cores:
        return ""
    return (
        f"Other work keeps this machine busy (load {load:.1f}, {cores} cores): the time is a guess "
        f"for a run beside it, and alone a run takes less."
    )


def about(seconds: float) -> str:
    """A duration as people say it.

    >>> about(8), about(47), about(100), about(4000), about(20000)
    ('about 10 seconds', 'about 50 seconds', 'about 2 minutes', 'about 1 hour', 'about 6 hours')
    """
    if seconds < 55:
        number, unit = max(10 * round(seconds / 10), 10), "second"
    elif seconds < 55 * 60:
        number, unit = max(round(seconds / 60), 1), "minute"
    else:
        number, unit = max(round(seconds / 3600), 1), "hour"
    return f"about {number} {unit}{'' if number == 1 else 's'}"


def meaning(record: Mapping[str, Any]) -> str:
    """What the numbers of a finished run mean: what was learned and forgotten, what training was
    worth, and how many experts did the work. The last two are left out of runs without a
    reference or experts.
    """
    return wrapped(filter(None, [_learned(record), reference_line(record), _experts(record)]))


def _learned(record: Mapping[str, Any]) -> str:
    final, fresh = record["final_average_accuracy"], record["learning_accuracy"]
    lost = -100 * (record["backward_transfer"] or 0.0)
    since = f"earlier tasks have lost {lost:.1f} points since" if lost >= LEAST_POINTS else ""
    return (
        f"After the last task {100 * final:.1f} % of the {record['evaluated_on']} images are "
        f"classified right, on average over the tasks and with all {len(record['class_names'])} "
        f"classes to choose from; just after each task it was {100 * fresh:.1f} %, and "
        f"{since or 'nothing was forgotten since'}."
    )


def _experts(record: Mapping[str, Any]) -> str:
    if not record.get("experts"):
        return ""
    use = record["experts"][-1]
    working, idle = fmean(use["effective"]), fmean(use["dead"]) * use["experts"]
    return (
        f"Each attention head has {use['experts']} experts, and an image uses {use['chosen']} of "
        f"them: over all images the work falls on about {working:.1f}, and {idle:.1f} are never "
        f"chosen."
    )


def next_steps(record: Mapping[str, Any], page: Path, overrides: Sequence[str]) -> str:
    """What to open and to type after a run.

    Args:
        record: run.json.
        page: The run's report.
        overrides: Those of its command, which the commands repeat.

    Returns:
        A heading, and a line for each.
    """
    of_run = ("run_dir=", "resume=")
    of_router = ("router=", "router.", *of_run)
    of_method = ("method=", "method.", "recipe=", *of_router)
    same_method = [text for text in overrides if not text.startswith(of_router)]
    repeated = [text for text in overrides if not text.startswith(of_method)]
    other = "ridge" if record["method"] != "ridge" else "ncm"
    steps = [(f"open {page}", "pictures of all this, in a browser")]
    activate = Path(os.path.relpath(Path(sys.prefix))) / "bin" / "activate"
    if shutil.which("smope") is None and activate.is_file():
        steps.append((f"source {activate}", "so that the shell finds smope"))
    steps.append(
        (command("train", f"method={other}", *repeated), "another method on the same tasks")
    )
    if spread := way_out(record):
        steps.append((command("train", spread, *same_method), "the work spread over more experts"))
    steps += [
        (command("collect", page.parent.parent), "these runs in one table"),
        ("smope train --help", "all choices: your own photographs (stream=folder) and others"),
    ]
    width = max(len(typed) for typed, _ in steps)
    return "\n".join(["", "next:", *(f"  {typed:<{width}}  {text}" for typed, text in steps)])
