"""The worst mistakes of the latest evaluation as small pictures, so that a report can show them
without the data set.

analysis/mistakes.safetensors, about n test images, the surest mistake first:
    image_of (n,) uint32: which of the images of images.safetensors these are
    jpeg (bytes,) uint8: their JPEG files one after another, as the model sees the images
    jpeg_end (n,) uint32: where each file ends
    metadata: `tasks_done`, and `names`, a JSON list of what the source calls each image (its path)

It is written again after each task: n is at most MAX_MISTAKES, a file about 100 KB.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from smope.streams.layouts.names import as_text
from smope.streams.stream import Stream

MAX_MISTAKES = 24
SIDE_PIXELS = 128
JPEG_QUALITY = 88


def worst_mistakes(evaluation: Mapping[str, numpy.ndarray], labels: numpy.ndarray) -> numpy.ndarray:
    """The wrong images with the most probable wrong class first; at most MAX_MISTAKES.

    Args:
        evaluation: `predicted`, and `logits` or `log_sum`; see training/recording.py.
        labels: (m,) classes of the first images.

    Returns:
        (n,) positions of images.
    """
    wrong = numpy.flatnonzero(evaluation["predicted"][: len(labels)] != labels)
    if "logits" in evaluation:
        powers = numpy.exp(evaluation["logits"][wrong].astype(numpy.float64)).sum(-1)
    else:
        powers = numpy.exp(evaluation["log_sum"][wrong].astype(numpy.float64))
    return wrong[numpy.argsort(-1 / powers, kind="stable")][:MAX_MISTAKES]


def mistakes_file(
    stream: Stream, evaluation: Mapping[str, numpy.ndarray], tasks_done: int
) -> tuple[dict[str, numpy.ndarray], dict[str, str]]:
    """What mistakes.safetensors holds.

    Args:
        stream: its test images were evaluated, in the order of tasks.
        evaluation: arrays of task-TTT.safetensors, of the tasks seen and maybe more.
        tasks_done: images of later tasks are no mistakes.

    Returns:
        Arrays and metadata.
    """
    positions = [
        (task.test, item, label)
        for task in stream.tasks[:tasks_done]
        for item, label in enumerate(task.test.targets)
    ]
    labels = numpy.array([label for *_, label in positions])
    worst = worst_mistakes(evaluation, labels)
    images = [positions[index][:2] for index in worst]
    files = [_jpeg(test[item][0]) for test, item in images]
    names = [as_text(test.name(item)) for test, item in images]
    arrays: dict[str, Any] = {
        "image_of": worst.astype(numpy.uint32),
        "jpeg": numpy.frombuffer(b"".join(files), numpy.uint8),
        "jpeg_end": numpy.cumsum([len(file) for file in files]).astype(numpy.uint32),
    }
    return arrays, {"tasks_done": str(tasks_done), "names": json.dumps(names)}


def _jpeg(image: Tensor) -> bytes:
    """image (3, S, S) in [0, 1] as a JPEG of at most SIDE_PIXELS pixels a side."""
    side = min(image.shape[-1], SIDE_PIXELS)
    small = F.interpolate(image[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    pixels = (255 * small.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()
