"""What the simplest method reaches on the same images and the same frozen features.

A method that trains should do better than nearest class mean (method=ncm), which takes one forward
pass an image. This tells the user whether it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from smope.backbones.wrapping import without_wrappers
from smope.methods.base import Method, TaskSpan
from smope.methods.ncm import NearestClassMean
from smope.streams.stream import Stream
from smope.training.evaluation import measure_accuracy, passed_batches
from smope.training.expert_counts import ExpertCounts
from smope.training.feature_cache import FeatureCache
from smope.training.loading import TaskLoader
from smope.training.precision import autocast
from smope.training.recording import Recorder
from smope.training.settings import Reference


def has_reference(method: Method, wanted: Reference) -> bool:
    """Whether a run measures a reference: not where that would be the method itself, or where the
    backbone changes.

    Args:
        method: of the run.
        wanted: trainer.reference.
    """
    return wanted == "ncm" and method.backbone.frozen and not isinstance(method, NearestClassMean)


@torch.no_grad()
def nearest_class_mean(
    method: Method,
    stream: Stream,
    spans: Sequence[TaskSpan],
    loader: TaskLoader,
    precision: str,
    cache: FeatureCache,
    on_task: Callable[[], object],
) -> list[list[float]]:
    """The accuracy matrix of method=ncm with the backbone of another method.

    Each image passes the frozen backbone once; one whose features are known does not.

    Args:
        method: its backbone is used without what the method put into its blocks.
        stream: the tasks.
        spans: the classes of each task.
        loader: loads the images.
        precision: trainer.precision.
        cache: the method's; it has features of the backbone where the method classifies those.
        on_task: called after each task.

    Returns:
        Row t has the accuracy on each task so far after task t, as fractions.
    """
    if not method.features_are_the_backbones:
        cache = FeatureCache(loader.device, cache.store)
    weight = method.classifier.weight
    ncm = NearestClassMean(method.backbone, method.num_classes).to(weight.device, weight.dtype)
    recorder, expert_counts = Recorder("nothing", stream), ExpertCounts()
    matrix: list[list[float]] = []
    with without_wrappers(method.backbone.vit), cache.used(True), loader.frozen.used(alone=True):
        for span, task in zip(spans, stream.tasks, strict=True):
            with autocast(precision, weight.device):
                ncm.eval().end_task(span, lambda _, task=task: loader.in_order(task.train_plain))
            row = []
            for index, earlier in enumerate(stream.tasks[: span.index + 1]):
                fresh = passed_batches(ncm, earlier.test, loader, precision, recorder)
                row.append(
                    measure_accuracy(
                        ncm,
                        cache.batches(index, fresh),
                        seen_classes=span.stop,
                        recorder=recorder,
                        expert_counts=expert_counts,
                    )
                )
            matrix.append(row)
            on_task()
    return matrix
