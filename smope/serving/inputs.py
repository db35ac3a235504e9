"""What `Classifier.predict` takes: files, folders, pictures, arrays and tensors, alone or many.

Pixels are bytes (uint8, 0 to 255) or floats in [0, 1]; other numbers are refused, since their range
is not known. Floats are rounded to bytes, so that an image gives the same numbers as its file.

Letters: B batch, H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy
from PIL import Image as Pillow
from PIL.Image import Image
from torch import Tensor

from smope.errors import UserError
from smope.serving.files import NotRead, find_images
from smope.streams.pixels.decode import decode

_log = logging.getLogger(__name__)
SingleInput = Path | str | bytes | Image | numpy.ndarray | Tensor
CHANNELS = (1, 3, 4)  # gray, RGB, and RGB with transparency


def single_images(images: Iterable[SingleInput] | SingleInput) -> Iterator[SingleInput]:
    """Every image by itself: the images of folders and of batches, in order.

    Args:
        images: Files or folders (Path or str), bytes of a file, pictures that Pillow has opened,
            arrays (H, W), (H, W, 3) or (B, H, W, 3), tensors (3, H, W) or (B, 3, H, W); one of
            these, or any number.

    Raises:
        UserError: An array has another shape or range, a folder holds no image, or something is
            none of these.
    """
    for image in [images] if isinstance(images, SingleInput) else images:
        if isinstance(image, Path | str) and Path(image).is_dir():
            not_read = NotRead()
            yield from find_images([Path(image)], not_read)
            for text in not_read.warnings():
                _log.warning("%s", text)
        elif isinstance(image, Path | str | bytes | Image):
            yield image
        elif isinstance(image, Tensor):
            yield from _arrays(_channels_last(image))
        elif isinstance(image, numpy.ndarray):
            yield from _arrays(image)
        else:
            raise UserError(
                f"images must be paths, folders, pictures of Pillow's, arrays or tensors, got "
                f"{type(image).__name__}; give for example predict([path, path])"
            )


def picture(image: SingleInput) -> Image:
    """A single image as RGB; UserError if it cannot be read."""
    if isinstance(image, numpy.ndarray):
        return decode(Pillow.fromarray(image))
    assert not isinstance(image, Tensor), "single_images makes arrays of tensors"
    return decode(image, "of these bytes" if isinstance(image, bytes) else None)


def _channels_last(images: Tensor) -> numpy.ndarray:
    """A tensor (3, H, W) or (B, 3, H, W), also with 1 channel, as an array (..., H, W, 3)."""
    if images.ndim not in (3, 4) or images.shape[-3] not in CHANNELS:
        raise UserError(
            f"tensors must be (3, H, W) or (B, 3, H, W), got {tuple(images.shape)}; permute the "
            f"dimensions, or give an array"
        )
    return images.detach().movedim(-3, -1).cpu().numpy()


def _arrays(images: numpy.ndarray) -> Iterator[numpy.ndarray]:
    """The images of an array as bytes, each (H, W) or (H, W, 3 or 4)."""
    is_image = images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in CHANNELS)
    is_batch = images.ndim == 4 and images.shape[-1] in CHANNELS
    if not (is_image or is_batch) or 0 in images.shape[1 if is_batch else 0 :]:
        raise UserError(
            f"arrays must be (H, W), (H, W, 3) or (B, H, W, 3), got {images.shape}; transpose the "
            f"array, or give a tensor (3, H, W)"
        )
    pixels = _as_bytes(images)
    for single in pixels if is_batch else [pixels]:
        yield single[..., 0] if single.shape[-1] == 1 and single.ndim == 3 else single


def _as_bytes(pixels: numpy.ndarray) -> numpy.ndarray:
    if pixels.dtype == numpy.uint8:
        return pixels
    is_float = numpy.issubdtype(pixels.dtype, numpy.floating)
    if not is_float or (pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1)):
        held = f"{pixels.min()} to {pixels.max()}" if pixels.size else "nothing"
        raise UserError(
            f"pixels must be uint8 in 0..255 or floats in [0, 1], got {pixels.dtype} of {held}; "
            f"divide bytes by 255, or convert to uint8"
        )
    return (255 * pixels + 0.5).astype(numpy.uint8)
