"""What follows a method's own end_task: class statistics, and the alignment of classifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from smope.methods.base import Method, TaskSpan
from smope.seeding import stable_seed
from smope.training.alignment import align_classifier
from smope.training.class_statistics import record_class_statistics
from smope.training.settings import TrainerSettings


def record_and_align(
    method: Method,
    span: TaskSpan,
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    settings: TrainerSettings,
    seed: int,
) -> None:
    """Record class statistics for each of method.recorded(), and then, from the second task on,
    retrain the classifier of each of method.aligned() on them.

    Args:
        method: what has learned the task.
        span: the task.
        batches: gives the task's training images, each once, and their labels.
        settings: the precision and the keys alignment_*.
        seed: of the run.
    """
    for part in method.recorded():
        method.eval()
        record_class_statistics(part, span, batches(), precision=settings.precision, seed=seed)
    for part in method.aligned() if span.index > 0 else ():
        method.train()
        align_classifier(part, span, settings, stable_seed(seed, "alignment", span.index))
