"""What the simplest method reaches on the same images and the same frozen features.

A method that trains should do better than nearest class mean (method=ncm), which takes one forward
pass an image. This tells the user whether it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from smope.backbones.wrapping import without_wrappers
from smope.distributed import collectives
from smope.methods.base import Method, TaskSpan
from smope.streams.stream import Stream
from smope.training.feature_cache import FeatureCache, PassedBatch
from smope.training.loading import TaskLoader
from smope.training.precision import autocast


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

    Each training and each test image passes the frozen backbone once; a test image whose features
    are in the cache does not. The features of the test images are in memory meanwhile.

    Args:
        method: its backbone is used without what the method put into its blocks.
        stream: the tasks.
        spans: the classes of each task.
        loader: loads the images.
        precision: trainer.precision.
        cache: features of the test images, if those of the method are the backbone's.
        on_task: called after each task.

    Returns:
        Row t has the accuracy on each task so far after task t, as fractions.
    """
    backbone = method.backbone.eval()
    sums = torch.zeros(method.num_classes, backbone.embed_dim, dtype=torch.float64)
    counts = torch.zeros(method.num_classes, dtype=torch.int64)

    def passed(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[PassedBatch]:
        for images, labels in batches:
            with autocast(precision, images.device):
                features = backbone(images)
            yield PassedBatch(features, collectives.gathered(labels), {})

    def gathered(batch: PassedBatch) -> tuple[Tensor, Tensor]:
        return collectives.gathered(batch.features).cpu().double(), batch.labels.cpu()

    matrix: list[list[float]] = []
    tests: list[tuple[Tensor, Tensor]] = []
    with without_wrappers(backbone.vit):
        for span, task in zip(spans, stream.tasks, strict=True):
            for batch in passed(loader.in_order(task.train_plain)):
                features, labels = gathered(batch)
                sums.index_add_(0, labels, features)
                counts += torch.bincount(labels, minlength=len(counts))
            batches = cache.batches(span.index, passed(loader.of_test(task.test)))
            pairs = [gathered(batch) for batch in batches]
            features, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
            tests.append((features.float(), labels))
            means = F.normalize(sums / counts.clamp(min=1).unsqueeze(1), dim=-1)[: span.stop]
            matrix.append([_accuracy(*test, means.float()) for test in tests])
            on_task()
    return matrix


def _accuracy(features: Tensor, labels: Tensor, means: Tensor) -> float:
    chosen = (F.normalize(features, dim=-1) @ means.T).argmax(-1)
    return float((chosen == labels).double().mean())
