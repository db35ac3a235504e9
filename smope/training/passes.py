"""How many images pass through the network beside training steps, counted task by task before a
run: for evaluation, for class statistics, and for what a method does before and after training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from smope.methods.base import Method
from smope.metrics.flops import count_pass

if TYPE_CHECKING:
    from smope.training.trainer import Trainer


@dataclass(frozen=True)
class Passes:
    """Passes of images over a run, in units of a pass of one image after the last task: where
    passes grow with the number of tasks, earlier ones are a part of one.

    Attributes:
        evaluated: of test images.
        recorded: of training images whose class statistics are recorded.
        own: of training images in the method's prepare_task and end_task.
        gflops: of a pass of training images.
    """

    evaluated: float
    recorded: float = 0.0
    own: float = 0.0
    gflops: float = 0.0


def count_passes(trainer: Trainer, infer_gflops: float) -> Passes:
    """Count them.

    Args:
        trainer: of the run.
        infer_gflops: of one image that is classified after the last task.
    """
    method, spans = trainer.method, trainer.spans
    tested = gflops_by_task(method, len(spans), lambda trial, images: trial(images), infer_gflops)
    passed = tested
    if type(method).task_features is not Method.task_features:
        passed = gflops_by_task(
            method, len(spans), lambda trial, images: trial.task_features(images, spans[0])
        )
    images = [
        len(task.train) * gflops / passed[-1]
        for task, gflops in zip(trainer.stream.tasks, passed, strict=True)
    ]
    return Passes(
        evaluated=sum(
            trainer.test_passes(span) * gflops / tested[-1]
            for span, gflops in zip(spans, tested, strict=True)
        ),
        recorded=len(method.recorded()) * sum(images),
        own=sum(
            method.own_passes(span) * number for span, number in zip(spans, images, strict=True)
        ),
        gflops=passed[-1],
    )


def gflops_by_task(
    method: Method,
    total: int,
    run: Callable[[Method, Tensor], Tensor],
    at_the_end: float | None = None,
) -> list[float]:
    """The GFLOPs of a pass of one image after each task.

    A pass that grows is counted after the first, the second and the last task, and taken to grow by
    the same in each task between the last two.

    Args:
        method: on any device; it stays as it is.
        total: number of tasks.
        run: the pass, of a copy of the method and an image.
        at_the_end: what it costs after the last task, if that is known.
    """
    if type(method).assume_learned is Method.assume_learned:
        [end] = [at_the_end] if at_the_end else count_pass(method, run, [total])
        return [end] * total
    counted = sorted({1, min(2, total), total})
    gflops = count_pass(method, run, counted)
    values = gflops[:1]
    for (first, last), (low, high) in zip(pairwise(counted), pairwise(gflops), strict=True):
        steps = last - first
        values += [low + (high - low) * step / steps for step in range(1, steps + 1)]
    return values
