"""Training batches of images that are on the device, beside those that are loaded, in turns."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy
import torch
from gpu_runs import Place

from smope.backbones.vit import load_backbone
from smope.methods.ncm import NearestClassMean
from smope.streams.source import ImageSet, Source
from smope.streams.stream import Stream, build_stream
from smope.training.settings import TrainerSettings
from smope.training.trainer import Trainer

BATCH = 128
# pixels of a picture, how many there are, and processes that load them where they are loaded
PICTURES = {"32 x 32": (32, 32, 2048, 0), "375 x 500": (375, 500, 1024, 4)}
WAYS = {"on the device": True, "loaded": False}


def batches(place: Place, seconds: float) -> list[dict[str, Any]]:
    """Seconds of a batch with random crops and flips, a row for each kind of picture and way.

    Args:
        place: Where they are measured.
        seconds: A half of them goes to rounds.
    """
    rows = []
    for name, (height, width, count, workers) in PICTURES.items():
        if place.toy:
            height, width, count, workers = 32, 48, 16, 0
        stream = _stream(height, width, count, 32 if place.toy else 224)
        trainers = {way: _trainer(stream, on, workers, place) for way, on in WAYS.items()}
        for trainer in trainers.values():  # the first pass copies the images, or starts processes
            _pass(trainer)
        passes: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        until = time.monotonic() + seconds / 2 / len(PICTURES)
        while len(passes["loaded"]) < 2 or (time.monotonic() < until and not place.toy):
            for way, trainer in trainers.items():
                passes[way].append(_pass(trainer))
        rows += [
            {
                "pictures": name,
                "way": way,
                "batch": _batch(place),
                "seconds": statistics.median(whole for whole, _ in passes[way]),
                "host_seconds": statistics.median(host for _, host in passes[way]),
                "passes": len(passes[way]),
                "bytes": trainer.loader.on_device.bytes,
            }
            for way, trainer in trainers.items()
        ]
    return rows


def _batch(place: Place) -> int:
    return 4 if place.toy else BATCH


def _stream(height: int, width: int, count: int, side: int) -> Stream:
    draw = numpy.random.default_rng(0)

    def images(number: int) -> ImageSet:
        shape = (number, height, width, 3)
        return ImageSet([0] * number, list(draw.integers(0, 256, shape, dtype=numpy.uint8)))

    source = Source("noise", ("one",), images(count), images(1))
    return build_stream(source, image_size=side, seed=0, num_tasks=1)


def _trainer(stream: Stream, on: bool, workers: int, place: Place) -> Trainer:
    side = 32 if place.toy else 224
    backbone = load_backbone("vit_tiny_patch16_224", "random", "none", image_size=side)
    settings = TrainerSettings(
        batch_size=_batch(place),
        images_on_device=on,
        num_workers=workers,
        device=place.device,
        reference="none",
    )
    device = torch.device(place.device)
    return Trainer(NearestClassMean(backbone, 1), stream, settings, seed=0, device=device)


def _pass(trainer: Trainer) -> tuple[float, float]:
    """Seconds of a batch over an epoch: in all, and until the CPU may go on."""
    started, host, count = time.perf_counter(), 0.0, 0
    loaded = trainer.loader.shuffled(trainer.stream.tasks[0].train, 0)
    while True:
        asked = time.perf_counter()
        batch = next(loaded, None)
        host += time.perf_counter() - asked
        if batch is None:
            break
        count += 1
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count, host / count
