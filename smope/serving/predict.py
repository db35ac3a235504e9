"""Classifying images with a trained model, without the data set that it was trained on.

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

from smope.declare.texts import Device
from smope.errors import UserError
from smope.methods.base import Method
from smope.run.artefact import Artefact, read_model
from smope.serving.rebuild import rebuild
from smope.streams.pixels.decode import decode
from smope.streams.pixels.transforms import Evaluation, collate, cut, resample
from smope.training.device import prefer_onednn, resolve_device
from smope.training.precision import evaluated, full_precision

READER_THREADS = 4  # images that are decoded at a time
DEVICE = Device()
UNUSED_GENERATOR = random.Random(0)  # the evaluation transform draws nothing


class Guess(NamedTuple):
    """A class, and its probability: the softmax over the logits of all classes seen."""

    class_name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """path: of the image; None for a picture that Pillow has opened. top: the K most probable
    classes, best first.
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
    """A trained model that classifies images among the classes it has seen; made by `load`."""

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
        """Logits (B, classes seen) of images (B, 3, S, S) in [0, 1], on any device and in any
        precision. UserError for other shapes or numbers; `predict` takes pictures of any size.
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
        """Classify images; they are resized and cropped as the run's test images were.

        Args:
            images: image files or pictures that Pillow has opened, or a single one.
            top: how many classes each prediction names.
            batch_size: images that are classified at a time.
            on_broken: called with the error of an image that cannot be read, which is then left
                out; None raises that error.

        Returns:
            A prediction for each image, in order, as soon as its batch is done.

        Raises:
            UserError: `top` or `batch_size` is out of range, or an image cannot be read.
        """
        num_classes = len(self.class_names)
        if not 1 <= top <= num_classes:
            raise UserError(
                f"top must be in 1..{num_classes}, for as many classes have been seen, got {top}"
            )
        if batch_size < 1:
            raise UserError(
                f"batch_size must be at least 1, got {batch_size}; lower it only for lack of memory"
            )
        several = [images] if isinstance(images, Path | str | Image) else images
        return self._predict(iter(several), top, batch_size, on_broken or _raise)

    def _predict(
        self,
        images: Iterator[Path | str | Image],
        top: int,
        batch_size: int,
        on_broken: Callable[[UserError], object],
    ) -> Iterator[Prediction]:
        with ThreadPoolExecutor(READER_THREADS) as pool:
            while batch := list(islice(images, batch_size)):
                inputs: list[tuple[Path | None, Tensor]] = []
                for image, pixels in zip(batch, pool.map(self._prepare, batch), strict=True):
                    if isinstance(pixels, UserError):
                        on_broken(pixels)
                    else:
                        inputs.append((None if isinstance(image, Image) else Path(image), pixels))
                if inputs:
                    yield from self._guess(inputs, top)

    def _prepare(self, image: Path | str | Image) -> Tensor | UserError:
        """An image as the backbone reads it, (3, S, S) in [0, 1]. Photographs may be large, so this
        is done one by one.
        """
        try:
            picture = decode(image)
        except UserError as error:
            return error
        pixels, window = cut(numpy.asarray(picture), self.transform, UNUSED_GENERATOR)
        batch = collate([(pixels, window, 0)])
        batch = batch._replace(pixels=batch.pixels.to(self.device))
        return resample(batch, self.transform.image_size, self.dtype)[0]

    def _guess(
        self, inputs: Sequence[tuple[Path | None, Tensor]], top: int
    ) -> Iterator[Prediction]:
        logits = self._logits(torch.stack([image for _, image in inputs]))
        best = logits.cpu().double().softmax(-1).topk(top)
        for (path, _), probabilities, labels in zip(
            inputs, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            names = [self.class_names[label] for label in labels]
            yield Prediction(path, tuple(map(Guess, names, probabilities)))


def _raise(error: UserError) -> None:
    raise error


def load(path: Path | str, device: str = "auto", weights: Path | str | None = None) -> Classifier:
    """Load a trained model; see `smope.load`.

    Args:
        path: a run directory or its model.safetensors.
        device: auto, cpu, cuda, cuda:N or mps.
        weights: where the backbone's weights are now; None for where the run read them.
    """
    if not DEVICE.holds(device):
        raise UserError(
            f"device must be {DEVICE.text}, got {device}; leave it out for {DEVICE.example}"
        )
    artefact = read_model(Path(path).expanduser())
    torch_device = resolve_device(device, "device")
    dtype = full_precision(artefact.precision)
    if dtype == torch.float64 and torch_device.type == "mps":
        raise UserError(
            "device=mps: has no float64, which this model was trained in; use device=cpu"
        )
    if torch_device.type == "cpu":
        prefer_onednn()  # as the run did
    method = rebuild(artefact, torch_device, dtype, None if weights is None else str(weights))
    return Classifier(artefact, method, torch_device, dtype)


def _precision(artefact: Artefact, device: torch.device) -> str:
    """The precision of the run; float32 instead of float16 on devices other than CUDA."""
    if artefact.precision == "float16" and device.type != "cuda":
        return "float32"
    return artefact.precision
