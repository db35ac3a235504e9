"""How much work is saved because features of the frozen backbone are computed once, counted before
a run starts; see training/frozen_features.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smope.backbones.known_features import KnownFeatures
from smope.distributed import collectives
from smope.methods.base import AlignableClassifier, Method, TaskSpan
from smope.training.reference import has_reference

if TYPE_CHECKING:
    from smope.training.trainer import Trainer


@dataclass(frozen=True)
class FrozenWork:
    """Passes of images through the frozen backbone alone that a run does not repeat.

    Attributes:
        in_training: of images in training steps, less those that are computed ahead.
        in_statistics: of training images whose class statistics are recorded.
        in_evaluation: of test images that were evaluated before.
        images: whose features are kept.
    """

    in_training: int = 0
    in_statistics: int = 0
    in_evaluation: int = 0
    images: int = 0


def count_frozen_work(trainer: Trainer) -> FrozenWork:
    """What is saved in a run without a break."""
    trained = [_of_task(trainer, span) for span in trainer.spans]
    tested = _of_tests(trainer)
    return FrozenWork(
        in_training=sum(work.in_training for work in trained),
        in_statistics=sum(work.in_statistics for work in trained),
        in_evaluation=tested.in_evaluation,
        images=sum(work.images for work in trained) + tested.images,
    )


def _of_task(trainer: Trainer, span: TaskSpan) -> FrozenWork:
    """What is saved with the training images of a task, as compute_ahead() and TaskLoader keep
    features.
    """
    method, task, settings = trainer.method, trainer.stream.tasks[span.index], trainer.settings
    transform, count = getattr(task.train, "transform", None), len(task.train)
    augmented = transform is None or transform.is_random  # a planned stream has no transform
    phases = [phase for phase in trainer.phases(span) if method.reads_frozen_features(phase)]
    epochs = sum(phase.epochs for phase in phases)
    ahead = not augmented and epochs >= 2 and collectives.world() == 1
    stepped = epochs * trainer.epoch_steps(span) * settings.batch_size
    read = 0
    if not augmented or settings.statistics_images == "plain":
        read = sum(_reads(method, _of_part(part, span)) for part in method.recorded())
    needed_again = has_reference(method, settings.reference)
    learned_in_one_pass = method.features_are_the_backbones and trainer.steps(span) == 0
    kept_later = needed_again and (read > 0 or learned_in_one_pass)
    return FrozenWork(
        in_training=stepped - count if ahead else 0,
        in_statistics=count * (read if ahead else read - 1 if kept_later and read else 0),
        images=count if ahead or kept_later else 0,
    )


def _of_tests(trainer: Trainer) -> FrozenWork:
    """What is saved with test images; of a method that classifies features of the frozen backbone,
    feature_cache.py keeps them.
    """
    method = trainer.method

    def classified(images: Tensor) -> Tensor:
        return method.classify(method.features(images))

    if method.features_are_the_backbones or not _reads(method, classified):
        return FrozenWork()
    tasks = max(trainer.evaluated_tasks(span) for span in trainer.spans)
    once = sum(len(task.test) for task in trainer.stream.tasks[:tasks])
    passes = sum(trainer.test_passes(span) for span in trainer.spans)
    return FrozenWork(in_evaluation=passes - once, images=once)


def _of_part(part: AlignableClassifier, span: TaskSpan) -> Callable[[Tensor], Tensor]:
    return lambda images: part.task_features(images, span)


@torch.no_grad()
def _reads(method: Method, run: Callable[[Tensor], Tensor]) -> bool:
    """Whether something reads features of the frozen backbone: tried on an image of zeros.

    Args:
        method: whose backbone it is; it is in evaluation mode meanwhile.
        run: is given the image, (1, 3, S, S).
    """
    weight, side = method.classifier.weight, method.backbone.image_size
    was_training, known = method.training, KnownFeatures(weight.new_zeros(1, 3, side, side))
    method.eval()
    method.backbone.known = known
    try:
        run(known.images)
    finally:
        method.backbone.known = None
        method.train(was_training)
    return known.features is not None
