"""From RGB pixels to the tensor a backbone reads: float32 (3, S, S) in [0, 1].

A transform chooses a `Window`, the part of a picture that the result shows; that is cheap and done
image by image, with random numbers of the image's own. `resample` then makes the pixels where they
are needed, always with torchvision's antialiased bilinear filter (a triangle, widened where
pictures shrink): on a CPU by PyTorch's kernel for bytes, on accelerators a padded batch at once, as
two products with weight matrices, one for rows and one for columns. The products do not round to
whole bytes on the way; all ways, and Pillow's, agree to 2/255. A part that already has the wanted
size comes out unchanged.

No mean and no standard deviation: pixel statistics belong to the backbone.

Letters: B batch, S side of the result, h and w height and width of the largest part in the batch.
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

RATIOS = (3 / 4, 4 / 3)  # width over height of random crops, as torchvision draws them
TRIES = 10


class Window(NamedTuple):
    """Rows `top`..`top + height` and columns `left`..`left + width` of a picture, resized to `tall`
    by `wide` pixels, of which the result shows the S by S pixels from (`down`, `across`) on; flip:
    mirrored left to right.
    """

    top: int
    left: int
    height: int
    width: int
    tall: int
    wide: int
    down: int = 0
    across: int = 0
    flip: bool = False


class Batch(NamedTuple):
    """Parts of pictures before resampling: pixels (B, h, w, 3) uint8, zero beyond each part's own
    size; windows (B, 9) int64, the fields of `Window`; labels (B,).
    """

    pixels: Tensor
    windows: Tensor
    labels: Tensor


class Transform(Protocol):
    """Chooses what is shown of a picture of `height` by `width` pixels; `draw` gives the random
    numbers.
    """

    @property
    def image_size(self) -> int: ...

    def window(self, height: int, width: int, draw: random.Random) -> Window: ...


@dataclass(frozen=True)
class Evaluation:
    """The shorter side resized to round(S / eval_crop), then the central S by S pixels; nothing is
    drawn.

    eval_crop 0.875 is the usual 256 -> 224, 1.0 a plain resize as for CIFAR.
    """

    image_size: int
    eval_crop: float

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(
                f"image_size must be at least 1 pixel, got {self.image_size}; use the backbone's "
                f"own size"
            )
        if not 0 < self.eval_crop <= 1:
            raise UserError(
                f"stream.eval_crop must be above 0 and at most 1, got {self.eval_crop}; "
                "use 0.875 for photographs, 1.0 for no crop"
            )

    def window(self, height: int, width: int, draw: random.Random) -> Window:
        short = round(self.image_size / self.eval_crop)
        tall, wide = (int(short * side / min(height, width)) for side in (height, width))
        down, across = (round((side - self.image_size) / 2) for side in (tall, wide))
        return Window(0, 0, height, width, tall, wide, down, across)


@dataclass(frozen=True)
class Training:
    """A random crop of `crop_scale` = [least, most] of the area resized to S, then a coin flip if
    `flip`.

    Crops are drawn as torchvision's RandomResizedCrop draws them. Without `crop_scale` the geometry
    is the evaluation's, so pictures that are not square keep their proportions.
    """

    image_size: int
    crop_scale: Sequence[float] | None
    flip: bool
    eval_crop: float

    def __post_init__(self) -> None:
        Evaluation(self.image_size, self.eval_crop)
        scale = self.crop_scale
        if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
            raise UserError(
                "stream.crop_scale must be [least, most] with 0 < least <= most <= 1, "
                f"got {list(scale)}; use [0.08,1.0], or null for no random crop"
            )

    def window(self, height: int, width: int, draw: random.Random) -> Window:
        if self.crop_scale is None:
            window = Evaluation(self.image_size, self.eval_crop).window(height, width, draw)
        else:
            top, left, tall, wide = self._crop(height, width, draw)
            window = Window(top, left, tall, wide, self.image_size, self.image_size)
        return window._replace(flip=self.flip and draw.random() < 0.5)

    def _crop(self, height: int, width: int, draw: random.Random) -> tuple[int, int, int, int]:
        """Top, left, height and width; the central part of nearest proportions where no draw fits."""
        assert self.crop_scale is not None
        for _ in range(TRIES):
            area = height * width * draw.uniform(self.crop_scale[0], self.crop_scale[1])
            ratio = math.exp(draw.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
            part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < part_width <= width and 0 < part_height <= height:
                top, left = (
                    draw.randint(0, height - part_height),
                    draw.randint(0, width - part_width),
                )
                return top, left, part_height, part_width
        part_width = min(width, round(height * RATIOS[1]))
        part_height = min(height, round(width / RATIOS[0]))
        return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


def part(
    pixels: numpy.ndarray, transform: Transform, draw: random.Random
) -> tuple[numpy.ndarray, Window]:
    """What `transform` shows of a picture (height, width, 3), not resampled yet, and how it is to
    be.
    """
    window = transform.window(pixels.shape[0], pixels.shape[1], draw)
    rows, columns = (
        slice(window.top, window.top + window.height),
        slice(window.left, window.left + window.width),
    )
    return pixels[rows, columns], window


def collate(parts: Sequence[tuple[numpy.ndarray, Window, int]]) -> Batch:
    """Parts (height, width, 3) uint8 with their windows and labels as one batch."""
    if len({part.shape for part, _, _ in parts}) == 1:
        pixels = numpy.stack([part for part, _, _ in parts])
    else:
        largest = numpy.array([part.shape[:2] for part, _, _ in parts]).max(axis=0)
        pixels = numpy.zeros((len(parts), *largest, 3), numpy.uint8)
        for row, (part, _, _) in zip(pixels, parts, strict=True):
            row[: part.shape[0], : part.shape[1]] = part
    windows = torch.tensor([window for _, window, _ in parts])
    return Batch(torch.from_numpy(pixels), windows, torch.tensor([label for _, _, label in parts]))


def resample(batch: Batch, image_size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The pictures of a batch, (B, 3, S, S) of `dtype` in [0, 1], on the device of its pixels."""
    if batch.pixels.device.type != "cpu":
        return _resample_padded(batch.pixels, batch.windows, image_size, dtype)
    windows = [Window(*fields) for fields in batch.windows.tolist()]
    images = [
        _resample_bytes(pixels, window, image_size)
        for pixels, window in zip(batch.pixels, windows, strict=True)
    ]
    return torch.stack(images).to(dtype).div_(255)


def _resample_bytes(pixels: Tensor, window: Window, side: int) -> Tensor:
    """One part (h, w, 3) uint8 -> (3, S, S) uint8."""
    image = pixels[: window.height, : window.width].permute(2, 0, 1)
    if (window.height, window.width) != (window.tall, window.wide):
        size = (window.tall, window.wide)
        image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    image = image[:, window.down : window.down + side, window.across : window.across + side]
    return image.flip(-1) if window.flip else image


def _resample_padded(pixels: Tensor, windows: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """Parts (B, h, w, 3) uint8, whatever lies beyond each part's own size -> (B, 3, S, S)."""
    count, height, width, _ = pixels.shape
    # float32 before it moves: not every accelerator has more
    _, _, heights, widths, tall, wide, down, across, flips = (
        windows.float().to(pixels.device).unbind(1)
    )
    rows = _weights(heights, tall, down, height, side).to(dtype)
    columns = _weights(widths, wide, across, width, side).to(dtype)
    columns = torch.where(flips.bool()[:, None, None], columns.flip(1), columns)
    resized = rows @ pixels.to(dtype).flatten(2)  # (B, S, w·3)
    resized = (
        resized.view(count, side, width, 3).permute(0, 3, 1, 2).reshape(count, 3 * side, width)
    )
    return (resized @ columns.transpose(1, 2)).view(count, 3, side, side) / 255


def _weights(sizes: Tensor, resized: Tensor, offsets: Tensor, longest: int, side: int) -> Tensor:
    """(B, S, longest): how much each pixel of a part's side counts for each pixel of the result;
    rows sum to 1.
    """
    steps = (sizes / resized)[:, None]
    result = torch.arange(side, device=sizes.device) + 0.5
    pixel = torch.arange(longest, device=sizes.device) + 0.5
    centres = (offsets[:, None] + result) * steps  # (B, S)
    distance = (pixel - centres[:, :, None]).abs() / steps.clamp(min=1)[:, :, None]
    weights = (1 - distance).clamp(min=0) * (pixel < sizes[:, None, None])
    return weights / weights.sum(-1, keepdim=True)
