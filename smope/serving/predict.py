"""Classifying images with a trained model, without the data set that it was trained on.

Letters: B batch, S image side.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy
import torch
from torch import Tensor

from smope.declare.texts import Device
from smope.errors import UserError
from smope.methods.base import Method
from smope.run.artefact import Artefact, read_model, write_artefact
from smope.serving.explanation import Explanation, explained
from smope.serving.hub import download, is_hub_reference
from smope.serving.inputs import SingleInput, picture, single_images
from smope.serving.prediction import Guess, Prediction
from smope.serving.rebuild import rebuild
from smope.serving.weights_beside import weights_now
from smope.storage.run_search import finished_run
from smope.streams.pixels.bit_depth import ASSUMED, WAY_OUT
from smope.streams.pixels.transforms import Evaluation, collate, cut, resample
from smope.training.device import available_cores, prefer_onednn, resolve_device
from smope.training.precision import evaluated_features, full_precision

if TYPE_CHECKING:
    from smope.serving.learning import Pupil
    from smope.serving.lessons import Lesson

_log = logging.getLogger(__name__)
MOST_WORKERS = 16  # threads that decode images, where nobody says how many
DEVICE = Device()
UNUSED_GENERATOR = random.Random(0)  # the evaluation transform draws nothing


class Classifier:
    """A trained model that classifies images among the classes it has seen; made by `load`."""

    def __init__(
        self,
        artefact: Artefact,
        method: Method,
        device: torch.device,
        dtype: torch.dtype,
        weights: str | None = None,
        *,
        remembers: bool = False,
    ) -> None:
        self.artefact = artefact
        self._weights = weights
        self._remembers = remembers
        self.method = method
        self.device = device
        self.dtype = dtype
        self._has_warned = False
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
        return self._classified(self._features(images.to(self.device, self.dtype)))

    def _features(self, images: Tensor) -> Tensor:
        return evaluated_features(self.method, images, _precision(self.artefact, self.device))

    @torch.no_grad()
    def _classified(self, features: Tensor) -> Tensor:
        return self.method.classify(features)[:, : len(self.class_names)]

    def predict(
        self,
        images: Iterable[SingleInput] | SingleInput,
        *,
        top: int = 1,
        min_probability: float = 0.0,
        batch_size: int = 64,
        on_broken: Callable[[UserError], object] | None = None,
        workers: int | None = None,
        explain: bool = False,
    ) -> Iterator[Prediction]:
        """Classify images; they are resized and cropped as the run's test images were.

        Any number of images can be classified: two batches are held at most, one that is classified
        and one that is decoded meanwhile.

        Args:
            images: one of these or any number: image files, folders of them, bytes of a file,
                pictures that Pillow has opened, arrays (H, W, 3) or (B, H, W, 3), and tensors
                (3, H, W) or (B, 3, H, W), of any size. Arrays and tensors hold bytes (uint8) or
                floats in [0, 1], which are rounded to bytes; other numbers are refused.
            top: how many classes each prediction names.
            min_probability: an image whose best class is less probable is unknown, in 0..1.
            batch_size: images that are classified at a time.
            on_broken: called with the error of an image that cannot be read, which is then left
                out; None raises that error.
            workers: threads that decode images; None: one for each CPU core, 16 at most.
            explain: whether each prediction says which experts and classes it is due to.

        Returns:
            A prediction for each image, in order, as soon as its batch is done.

        Raises:
            UserError: an argument is out of range, or an image cannot be read.
        """
        num_classes = len(self.class_names)
        if not 1 <= top <= num_classes:
            raise UserError(
                f"top must be in 1..{num_classes}, for as many classes have been seen, got {top}"
            )
        if not 0 <= min_probability <= 1:
            raise UserError(
                f"min_probability must be in 0..1, got {min_probability}; write 0.8 for 80 %"
            )
        if batch_size < 1:
            raise UserError(
                f"batch_size must be at least 1, got {batch_size}; lower it only for lack of memory"
            )
        if workers is not None and workers < 1:
            raise UserError(
                f"workers must be at least 1, got {workers}; leave it out for all cores"
            )
        decoded = self._decoded(single_images(images), batch_size, workers or usable_cores())
        batches = _batches(decoded, batch_size, on_broken or _raise)
        return (
            prediction
            for batch in batches
            for prediction in self._guess(batch, top, min_probability, explain)
        )

    def learn(
        self,
        folder: Path | str,
        *,
        validation: Path | str | None = None,
        more_images: bool = False,
        broken_images: Literal["error", "skip"] = "error",
        quiet: bool = True,
    ) -> Classifier:
        """Learn more classes from new images alone; `smope learn` does the same.

        Args:
            folder: holds a folder of images for each class, or the images of one class.
            validation: the same for old and new classes, to measure accuracies before and after.
            more_images: whether images of classes that are known already are welcome.
            broken_images: "error" refuses images that cannot be read, "skip" leaves them out.
            quiet: whether to print nothing meanwhile.

        Returns:
            A classifier that knows the new classes too; this one stays as it is. What was learned,
            and how well old classes are recognised, is in its `artefact.lineage[-1]`.

        Raises:
            UserError: the model is not learnable (trainer.keep=learnable), or an argument is wrong.
        """
        from smope.serving.class_folders import class_folders
        from smope.serving.lessons import prepare_lesson

        held_out = None
        if validation is not None:
            held_out = class_folders(Path(validation).expanduser(), "validation")
        lesson = prepare_lesson(
            self.artefact,
            class_folders(Path(folder).expanduser(), "folder"),
            held_out,
            more_images=more_images,
            broken_images=broken_images,
        )
        return self.of_version(self.pupil(lesson, quiet).learn())

    def pupil(self, lesson: Lesson, quiet: bool = True) -> Pupil:
        """This model, about to learn a lesson.

        Args:
            lesson: what it will learn.
            quiet: whether to print nothing meanwhile.
        """
        from smope.serving.learning import Pupil

        return Pupil(self.artefact, lesson, self.device, self._weights, quiet)

    def forget(self, class_names: Sequence[str], images: Path | str | None = None) -> Classifier:
        """Withdraw classes; `smope forget` does the same.

        Args:
            class_names: what is forgotten.
            images: the images that the classes were learned from, in class folders, to be taken out
                of sums that all classes share.

        Returns:
            A classifier without the classes; this one stays as it is.

        Raises:
            UserError: a class is unknown or the last one, or the images are others.
        """
        from smope.serving.class_folders import class_folders
        from smope.serving.forgetting import forget

        folders = None if images is None else class_folders(Path(images).expanduser(), "images")
        smaller, notes = forget(self.artefact, class_names, self.device, self._weights, folders)
        for note in notes:
            _log.info("%s", note)
        return self.of_version(smaller)

    def save(self, path: Path | str) -> None:
        """Write the model to a new file, which `load` reads. FileExistsError if there is one."""
        self.artefact = write_artefact(self.artefact, Path(path).expanduser())

    def of_version(self, artefact: Artefact) -> Classifier:
        """A classifier of another version of the model, on the same backbone and device."""
        method = rebuild(
            artefact, self.device, self.dtype, self._weights, remembers=self._remembers
        )
        return Classifier(
            artefact, method, self.device, self.dtype, self._weights, remembers=self._remembers
        )

    def _decoded(
        self, images: Iterator[SingleInput], batch_size: int, workers: int
    ) -> Iterator[tuple[Path | None, Tensor | UserError]]:
        """Images in order, each with its path if it has one.

        Args:
            images: what is decoded, by threads that work a batch ahead; of a batch of one nothing
                is taken ahead, so that whoever gives images sees each answer first.
            batch_size: images that are taken at a time.
            workers: threads.
        """
        most = 2 * batch_size if batch_size > 1 else 1
        ahead: deque[tuple[SingleInput, Future[Tensor | UserError]]] = deque()
        pool = ThreadPoolExecutor(workers)
        try:
            while True:
                for image in islice(images, most - len(ahead)):
                    ahead.append((image, pool.submit(self._prepare, image)))
                if not ahead:
                    return
                for _ in range(min(batch_size, len(ahead))):
                    image, pixels = ahead.popleft()
                    path = Path(image) if isinstance(image, Path | str) else None
                    yield path, pixels.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, image: SingleInput) -> Tensor | UserError:
        """An image as the backbone reads it, (3, S, S) in [0, 1]. Photographs may be large, so this
        is done one by one.
        """
        try:
            rgb = picture(image)
        except UserError as error:
            return error
        if ASSUMED in rgb.info and not self._has_warned:
            self._has_warned = True
            _log.warning("%s: %s; it may be too dark: %s", image, rgb.info[ASSUMED], WAY_OUT)
        pixels, window = cut(numpy.asarray(rgb), self.transform, UNUSED_GENERATOR)
        batch = collate([(pixels, window, 0)])
        batch = batch._replace(pixels=batch.pixels.to(self.device))
        return resample(batch, self.transform.image_size, self.dtype)[0]

    def _guess(
        self,
        inputs: Sequence[tuple[Path | None, Tensor]],
        top: int,
        min_probability: float,
        explain: bool,
    ) -> Iterator[Prediction]:
        features = self._features(torch.stack([image for _, image in inputs]))
        explanations: Sequence[Explanation | None] = [None] * len(inputs)
        if explain:
            explanations = explained(self.artefact, self.method, features)
        logits = self._classified(features).cpu().double()
        best = logits.softmax(-1).topk(top)
        for (path, _), probabilities, labels, largest, explanation in zip(
            inputs,
            best.values.tolist(),
            best.indices.tolist(),
            logits.amax(-1).tolist(),
            explanations,
            strict=True,
        ):
            names = [self.class_names[label] for label in labels]
            guesses = tuple(map(Guess, names, probabilities))
            is_unknown = guesses[0].probability < min_probability
            yield Prediction(path, guesses, -largest, is_unknown, explanation)


def _raise(error: UserError) -> None:
    raise error


def usable_cores() -> int:
    """CPU cores that this process may use, `MOST_WORKERS` at most."""
    return min(MOST_WORKERS, available_cores())


def _batches(
    decoded: Iterator[tuple[Path | None, Tensor | UserError]],
    batch_size: int,
    on_broken: Callable[[UserError], object],
) -> Iterator[list[tuple[Path | None, Tensor]]]:
    """Batches of images that can be read, each with its path if it has one."""
    while batch := list(islice(decoded, batch_size)):
        inputs: list[tuple[Path | None, Tensor]] = []
        for path, pixels in batch:
            if isinstance(pixels, UserError):
                on_broken(pixels)
            else:
                inputs.append((path, pixels))
        if inputs:
            yield inputs


def load(path: Path | str, device: str = "auto", weights: Path | str | None = None) -> Classifier:
    """Load a trained model; see `smope.load`.

    Args:
        path: a run directory, a folder with some below it, `latest`, a model.safetensors, or
            hf://OWNER/NAME.
        device: auto, cpu, cuda, cuda:N or mps.
        weights: where the backbone's weights are now; None for where the run read them.
    """
    if not DEVICE.holds(device):
        raise UserError(
            f"device must be {DEVICE.text}, got {device}; leave it out for {DEVICE.example}"
        )
    if is_hub_reference(path):
        path = download(str(path))
    model = finished_run(Path(path).expanduser(), _log.info)
    return classifier_of(read_model(model), model, device, weights)


def classifier_of(
    artefact: Artefact,
    model: Path,
    device: str = "auto",
    weights: Path | str | None = None,
    *,
    remembers: bool = False,
) -> Classifier:
    """The classifier of an artefact.

    Args:
        artefact: what was read.
        model: its file or run directory, beside which weights may lie.
        device: auto, cpu, cuda, cuda:N or mps.
        weights: where the backbone's weights are now; None for where the run read them.
        remembers: whether it also holds what only learning reads, of a learnable artefact. Its
            explanations name the nearest classes then.

    Raises:
        UserError: the device is absent or too coarse, or the weights are others.
    """
    torch_device = resolve_device(device, "device")
    dtype = full_precision(artefact.precision)
    if dtype == torch.float64 and torch_device.type == "mps":
        raise UserError(
            "device=mps: has no float64, which this model was trained in; use device=cpu"
        )
    if torch_device.type == "cpu":
        prefer_onednn()  # as the run did
    source = weights_now(model, artefact.backbone.get("weights"), weights)
    method = rebuild(artefact, torch_device, dtype, source, remembers=remembers)
    return Classifier(artefact, method, torch_device, dtype, source, remembers=remembers)


def _precision(artefact: Artefact, device: torch.device) -> str:
    """The precision of the run; float32 instead of float16 on devices other than CUDA."""
    if artefact.precision == "float16" and device.type != "cuda":
        return "float32"
    return artefact.precision
