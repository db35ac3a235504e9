"""Classifying images with what a run has learned, without its data set.

Letters: B batch, S image side.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL.Image import Image
from torch import Tensor

from smope.config.ranges import RULES
from smope.errors import UserError
from smope.methods.base import Method
from smope.run.artefact import Artefact, read_model
from smope.serving.rebuild import rebuild
from smope.streams.pixels.decode import decode
from smope.streams.pixels.transforms import Evaluation, collate, cut, resample
from smope.training.device import prefer_onednn, resolve_device
from smope.training.precision import evaluated, full_precision

READERS = 4  # images that are decoded at a time
DEVICE = RULES["trainer.device"]
NO_DRAW = random.Random(0)  # evaluation draws nothing


class Guess(NamedTuple):
    """A class, and its share of the softmax over the logits of all classes seen."""

    class_name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What an image was taken for; path: None where a picture was given. top: the K best guesses,
    best first.
    """

    path: Path | None
    top: tuple[Guess, ...]

    @property
    def class_name(self) -> str:
        return self.top[0].class_name

    @property
    def probability(self) -> float:
        return self.top[0].probability


class Classifier:
    """A trained method that classifies images among the classes seen so far; made by `load`."""

    def __init__(
        self, artefact: Artefact, method: Method, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.artefact = artefact
        self.method = method
        self.device = device
        self.dtype = dtype
        self.class_names = tuple(artefact.class_names)
        self.transform = Evaluation(method.backbone.image_size, artefact.eval_crop)

    def __call__(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) in [0, 1], of whatever device and precision -> logits (B, classes
        seen). ValueError for other shapes or numbers; for pictures of other sizes there is
        `predict`.
        """
        side = self.transform.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side):
            raise UserError(
                f"images must be (B, 3, {side}, {side}), got {tuple(images.shape)}; or use "
                "predict(paths)"
            )
        if not images.is_floating_point() or (
            len(images) and not (images.min() >= 0 and images.max() <= 1)
        ):
            raise UserError("images must be numbers in [0, 1]; divide bytes by 255")
        return self._logits(images.to(self.device, self.dtype))

    def _logits(self, images: Tensor) -> Tensor:
        precision = _precision(self.artefact, self.device)
        return evaluated(self.method, images, precision)[:, : len(self.class_names)]

    def predict(
        self,
        images: Iterable[Path | str | Image] | Path | str | Image,
        *,
        top: int = 1,
        batch_size: int = 64,
        on_broken: Callable[[UserError], object] | None = None,
    ) -> Iterator[Prediction]:
        """A prediction for each image file or picture, or for a single one, in order, as soon as
        its batch is done.

        Images are shown as the run's test images were. An image that cannot be read ends it with a
        UserError that names it; with `on_broken`, that is called with the error instead, and the
        image left out.
        """
        known = len(self.class_names)
        if not 1 <= top <= known:
            raise UserError(
                f"top must be in 1..{known}, for as many classes have been seen, got {top}"
            )
        if batch_size < 1:
            raise UserError(
                f"batch_size must be at least 1, got {batch_size}; lower it only for lack of memory"
            )
        given = [images] if isinstance(images, Path | str | Image) else images
        return self._predict(iter(given), top, batch_size, on_broken or _raise)

    def _predict(
        self,
        images: Iterator[Path | str | Image],
        top: int,
        batch_size: int,
        on_broken: Callable[[UserError], object],
    ) -> Iterator[Prediction]:
        with ThreadPoolExecutor(READERS) as pool:
            while batch := list(islice(images, batch_size)):
                shown: list[tuple[Path | None, Tensor]] = []
                for image, found in zip(batch, pool.map(self._show, batch), strict=True):
                    if isinstance(found, UserError):
                        on_broken(found)
                    else:
                        shown.append((None if isinstance(image, Image) else Path(image), found))
                if shown:
                    yield from self._guess(shown, top)

    def _show(self, image: Path | str | Image) -> Tensor | UserError:
        """An image as the backbone reads it, (3, S, S) in [0, 1]; one at a time, for photographs
        may be large.
        """
        try:
            picture = decode(image)
        except UserError as error:
            return error
        batch = collate([(*cut(numpy.asarray(picture), self.transform, NO_DRAW), 0)])
        pixels = batch.pixels.to(self.device)
        return resample(batch._replace(pixels=pixels), self.transform.image_size, self.dtype)[0]

    def _guess(self, shown: Sequence[tuple[Path | None, Tensor]], top: int) -> Iterator[Prediction]:
        logits = self._logits(torch.stack([image for _, image in shown]))
        best = logits.cpu().double().softmax(-1).topk(top)
        for (path, _), shares, labels in zip(
            shown, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            names = [self.class_names[label] for label in labels]
            yield Prediction(path, tuple(map(Guess, names, shares)))


def _raise(error: UserError) -> None:
    raise error


def load(path: Path | str, device: str = "auto", weights: Path | str | None = None) -> Classifier:
    """What a run has learned: `path` is its directory or its model.safetensors. See smope.load."""
    if not DEVICE.holds(device):
        raise UserError(
            f"device must be {DEVICE.text}, got {device}; leave it out for {DEVICE.example}"
        )
    artefact = read_model(Path(path).expanduser())
    place = resolve_device(device, "device")
    dtype = full_precision(artefact.precision)
    if dtype == torch.float64 and place.type == "mps":
        raise UserError(
            "device=mps: has no float64, which this model was trained in; use device=cpu"
        )
    if place.type == "cpu":
        prefer_onednn()  # as the run did
    where = None if weights is None else str(weights)
    return Classifier(artefact, rebuild(artefact, place, dtype, where), place, dtype)


def _precision(artefact: Artefact, device: torch.device) -> str:
    """The run's; float16 is for CUDA devices, elsewhere float32 has its place."""
    return (
        "float32"
        if artefact.precision == "float16" and device.type != "cuda"
        else artefact.precision
    )
