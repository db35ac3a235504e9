"""From RGB pixels to the tensor a backbone reads: float32 (3, S, S) in [0, 1].

A transform chooses a `Window`, the part of a picture that the result shows. That is cheap and is
done image by image, with random numbers that belong to the image. `resample` then computes the
pixels on the device that needs them, always with torchvision's antialiased bilinear filter (a
triangle, widened where pictures shrink). On a CPU it calls PyTorch's kernel for bytes. On an
accelerator it resamples a padded batch at once, by two products with weight matrices, one for rows
and one for columns. The products do not round to whole bytes in between; both ways agree with each
other and with Pillow to 2/255. A part that already has the wanted size is not changed.

Mean and standard deviation are not applied here: pixel statistics belong to the backbone.

Letters: B batch, S side of the result, h and w height and width of the largest picture in the
batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from smope.errors import UserError
from smope.streams.pixels.partial_resize import Axis, resize, source_range

CROP_ASPECT_RATIOS = (3 / 4, 4 / 3)  # width over height, as torchvision draws random crops
MAX_CROP_DRAWS = 10
# Longer over shorter side of a picture that is resized as a whole. Of a longer one only the part
# that is shown is computed, so that no picture takes much more memory than a square one. The pixels
# are the same, and it takes longer than PyTorch's kernel, so photographs and panoramas are resized
# as a whole.
MAX_RESIZED_RATIO = 8


class Window(NamedTuple):
    """Which part of a picture is shown, and how.

    Rows `top` to `top + height` and columns `left` to `left + width` are cut out and resized to
    (`resized_height`, `resized_width`). The result is the S by S pixels of that which start at row
    `offset_top` and column `offset_left`, mirrored left to right where `flip` is set. Of a long
    picture only what these depend on is cut out: `first_row` and `first_column` of the window are
    where it begins.
    """

    top: int
    left: int
    height: int
    width: int
    resized_height: int
    resized_width: int
    offset_top: int = 0
    offset_left: int = 0
    flip: bool = False
    first_row: int = 0
    first_column: int = 0

    @property
    def is_long(self) -> bool:
        """Whether the result shows a small part of the resized picture, along its longer side."""
        return max(self.resized_height, self.resized_width) > MAX_RESIZED_RATIO * min(
            self.resized_height, self.resized_width
        )

    def rows(self, side: int) -> Axis:
        """How rows are resized to the `side` rows of the result."""
        return Axis(self.height, self.resized_height, self.offset_top, side)

    def columns(self, side: int) -> Axis:
        """How columns are resized to the `side` columns of the result."""
        return Axis(self.width, self.resized_width, self.offset_left, side)


class Part(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Batch(NamedTuple):
    """Cut-out pictures before resampling.

    pixels:  (B, h, w, 3) uint8, zero beyond each picture's own size.
    windows: (B, 11) int64, the fields of `Window`.
    labels:  (B,).
    """

    pixels: Tensor
    windows: Tensor
    labels: Tensor


class Transform(Protocol):
    """Chooses what is shown of a picture.

    `is_random` is False where `window` draws no random number.
    """

    @property
    def image_size(self) -> int: ...

    @property
    def is_random(self) -> bool: ...

    def window(self, height: int, width: int, generator: random.Random) -> Window: ...


@dataclass(frozen=True)
class Evaluation:
    """Resizes the shorter side to round(S / eval_crop) and shows the central S by S pixels.

    An `eval_crop` of 0.875 is the usual 256 -> 224; 1.0 is a plain resize, as for CIFAR.
    """

    image_size: int
    eval_crop: float

    @property
    def is_random(self) -> bool:
        return False

    @property
    def shorter_side(self) -> int:
        """What the shorter side is resized to, in pixels."""
        return round(self.image_size / self.eval_crop)

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(
                f"image_size must be at least 1 pixel, got {self.image_size}; use the backbone's "
                "own size"
            )
        if not 0 < self.eval_crop <= 1:
            raise UserError(
                f"stream.eval_crop must be above 0 and at most 1, got {self.eval_crop}; use 0.875 "
                "for photographs, 1.0 for no crop"
            )

    def window(self, height: int, width: int, generator: random.Random) -> Window:
        resized_height = int(self.shorter_side * height / min(height, width))
        resized_width = int(self.shorter_side * width / min(height, width))
        offset_top = round((resized_height - self.image_size) / 2)
        offset_left = round((resized_width - self.image_size) / 2)
        return Window(0, 0, height, width, resized_height, resized_width, offset_top, offset_left)


@dataclass(frozen=True)
class Training:
    """A random crop of [least, most] = `crop_scale` of the area, resized to S by S pixels and
    mirrored with probability 1/2 if `flip` is set.

    Crops are drawn as torchvision's RandomResizedCrop draws them. Without `crop_scale` the window
    is that of `Evaluation`, so pictures that are not square keep their proportions.
    """

    image_size: int
    crop_scale: Sequence[float] | None
    flip: bool
    eval_crop: float

    @property
    def is_random(self) -> bool:
        return self.flip or self.crop_scale is not None

    def __post_init__(self) -> None:
        Evaluation(self.image_size, self.eval_crop)
        scale = self.crop_scale
        if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
            raise UserError(
                "stream.crop_scale must be [least, most] with 0 < least <= most <= 1, got "
                f"{list(scale)}; use [0.08,1.0], or null for no random crop"
            )

    def window(self, height: int, width: int, generator: random.Random) -> Window:
        if self.crop_scale is None:
            window = Evaluation(self.image_size, self.eval_crop).window(height, width, generator)
        else:
            crop = self._crop(height, width, generator)
            window = Window(*crop, self.image_size, self.image_size)
        return window._replace(flip=self.flip and generator.random() < 0.5)

    def _crop(self, height: int, width: int, generator: random.Random) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random crop; the largest central crop with allowed
        proportions if no draw fits.
        """
        assert self.crop_scale is not None
        for _ in range(MAX_CROP_DRAWS):
            area = height * width * generator.uniform(self.crop_scale[0], self.crop_scale[1])
            ratio = math.exp(generator.uniform(*map(math.log, CROP_ASPECT_RATIOS)))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = generator.randint(0, height - crop_height)
                left = generator.randint(0, width - crop_width)
                return top, left, crop_height, crop_width
        crop_width = min(width, round(height * CROP_ASPECT_RATIOS[1]))
        crop_height = min(height, round(width / CROP_ASPECT_RATIOS[0]))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def shown_part(
    height: int, width: int, transform: Transform, generator: random.Random
) -> tuple[Part, Window]:
    """What `transform` shows of a picture, without its pixels.

    Args:
        height: of the picture.
        width: of the picture.
        transform: chooses the window.
        generator: where random numbers come from.

    Returns:
        The part of the picture that the result depends on, and the window.
    """
    window = transform.window(height, width, generator)
    rows, columns = (0, window.height), (0, window.width)
    if window.is_long:
        rows = source_range(window.rows(transform.image_size))
        columns = source_range(window.columns(transform.image_size))
        window = window._replace(first_row=rows[0], first_column=columns[0])
    top, left = window.top + rows[0], window.left + columns[0]
    return Part(top, left, rows[1] - rows[0], columns[1] - columns[0]), window


def cut(
    pixels: numpy.ndarray, transform: Transform, generator: random.Random
) -> tuple[numpy.ndarray, Window]:
    """Cut out what `transform` shows of a picture.

    Args:
        pixels: (height, width, 3) uint8.
        transform: chooses the window.
        generator: where random numbers come from.

    Returns:
        The pixels of the window, not resampled yet, and the window. Of a long picture only the
        pixels that the result depends on.
    """
    part, window = shown_part(pixels.shape[0], pixels.shape[1], transform, generator)
    rows = slice(part.top, part.top + part.height)
    return pixels[rows, part.left : part.left + part.width], window


def collate(items: Sequence[tuple[numpy.ndarray, Window, int]]) -> Batch:
    """Cut-out pictures (height, width, 3) uint8 with their windows and labels as one batch."""
    pictures = [picture for picture, _, _ in items]
    if len({picture.shape for picture in pictures}) == 1:
        pixels = numpy.stack(pictures)
    else:
        largest = numpy.array([picture.shape[:2] for picture in pictures]).max(axis=0)
        pixels = numpy.zeros((len(items), *largest, 3), numpy.uint8)
        for row, picture in zip(pixels, pictures, strict=True):
            row[: picture.shape[0], : picture.shape[1]] = picture
    windows = torch.tensor([window for _, window, _ in items])
    return Batch(torch.from_numpy(pixels), windows, torch.tensor([label for _, _, label in items]))


def resample(batch: Batch, image_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Make the pictures that a backbone reads, on the device of the batch's pixels.

    Args:
        batch: cut-out pictures and their windows.
        image_size: S.
        dtype: of the result.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    if batch.pixels.device.type != "cpu":
        return _resample_padded(batch.pixels, batch.windows, image_size, dtype)
    windows = [Window(*fields) for fields in batch.windows.tolist()]
    images = [
        _resample_bytes(pixels, window, image_size)
        for pixels, window in zip(batch.pixels, windows, strict=True)
    ]
    return torch.stack(images).to(dtype).div_(255)


def _resample_bytes(pixels: Tensor, window: Window, side: int) -> Tensor:
    """One picture (h, w, 3) uint8 -> (3, S, S) uint8."""
    if window.is_long:
        by_column = resize(pixels.transpose(0, 1), window.columns(side), window.first_column)
        image = resize(by_column.transpose(0, 1), window.rows(side), window.first_row)
        image = image.permute(2, 0, 1)
        return image.flip(-1) if window.flip else image
    image = pixels[: window.height, : window.width].permute(2, 0, 1)
    size = (window.resized_height, window.resized_width)
    if (window.height, window.width) != size:
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    rows = slice(window.offset_top, window.offset_top + side)
    columns = slice(window.offset_left, window.offset_left + side)
    image = image[:, rows, columns]
    return image.flip(-1) if window.flip else image


def _resample_padded(pixels: Tensor, windows: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """Pictures (B, h, w, 3) uint8 -> (B, 3, S, S); what lies beyond a picture's own size is not
    read.
    """
    count, height, width, _ = pixels.shape
    field = dict(zip(Window._fields, windows.cpu().double().unbind(1), strict=True))
    vertical = (field[name] for name in ("height", "resized_height", "offset_top", "first_row"))
    horizontal = (field[name] for name in ("width", "resized_width", "offset_left", "first_column"))
    numbers = [*_geometry(*vertical), *_geometry(*horizontal), field["flip"].float()]
    numbers = sent(torch.stack(numbers), pixels.device)
    rows = _weights(numbers[0:3], height, side).to(dtype)
    columns = _weights(numbers[3:6], width, side).to(dtype)
    columns = torch.where(numbers[6].bool()[:, None, None], columns.flip(1), columns)
    resized = rows @ pixels.to(dtype).flatten(2)  # (B, S, w·3)
    resized = (
        resized.view(count, side, width, 3).permute(0, 3, 1, 2).reshape(count, 3 * side, width)
    )
    return (resized @ columns.transpose(1, 2)).view(count, 3, side, side) / 255


def _geometry(
    sizes: Tensor, resized: Tensor, offsets: Tensor, firsts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the weights along one side of pictures depend on.

    Args:
        sizes: (B,) float64 on the CPU, of the windows along this side.
        resized: (B,), what they are resized to.
        offsets: (B,), where the result starts in the resized pictures.
        firsts: (B,), where the pixels of the batch start in the windows.

    Returns:
        Three times (B,) float32: pixels of a window for a pixel of the result, where the result
        starts in the pixels of the batch, and where the window ends there.
    """
    # In float64, since offsets may be millions, and as float32 before it moves: not every
    # accelerator has wider types.
    steps = (sizes / resized).float()
    starts = (offsets * sizes / resized - firsts).float()
    return steps, starts, (sizes - firsts).float()


def _weights(geometry: Tensor, longest: int, side: int) -> Tensor:
    """The weight of each pixel along one side of a picture for each pixel of the result.

    Args:
        geometry: (3, B), see _geometry.
        longest: pixels of the batch along this side.
        side: S.

    Returns:
        (B, S, longest) float32; rows sum to 1.
    """
    steps, starts, ends = geometry[0, :, None], geometry[1, :, None], geometry[2]
    result = torch.arange(side, device=geometry.device) + 0.5
    pixel = torch.arange(longest, device=geometry.device) + 0.5
    centres = starts + result * steps  # (B, S)
    distance = (pixel - centres[:, :, None]).abs() / steps.clamp(min=1)[:, :, None]
    weights = (1 - distance).clamp(min=0) * (pixel < ends[:, None, None])
    return weights / weights.sum(-1, keepdim=True)


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for what the device has to do before."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
