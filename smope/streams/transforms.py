"""From an RGB picture to the tensor a backbone reads: float32 (3, S, S) in [0, 1].

No mean and no standard deviation: pixel statistics belong to the backbone. Resampling is Pillow's bilinear
filter, always antialiased and in fixed-point arithmetic, so every machine computes the same pixels. A picture
that already has the wanted size is not resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torchvision.transforms import v2

from smope.errors import UserError


def training_transform(image_size: int, crop_scale: Sequence[float] | None, flip: bool, eval_crop: float) -> v2.Compose:
    """A random crop of `crop_scale` = [least, most] of the area resized to S, then a coin flip if `flip`.

    Without `crop_scale` the geometry is the evaluation's, so pictures that are not square keep their
    proportions. Random numbers come from torch's global CPU generator.
    """
    _check(image_size, eval_crop)
    if crop_scale is None:
        steps = _fixed_crop(image_size, eval_crop)
    else:
        steps = [v2.RandomResizedCrop(image_size, scale=_checked_scale(crop_scale), antialias=True)]
    return v2.Compose([*steps, *([v2.RandomHorizontalFlip()] if flip else []), unit_floats])


def evaluation_transform(image_size: int, eval_crop: float) -> v2.Compose:
    """The shorter side resized to round(S / eval_crop), then the central S by S pixels; nothing is drawn.

    eval_crop 0.875 is the usual 256 -> 224, 1.0 a plain resize as for CIFAR.
    """
    _check(image_size, eval_crop)
    return v2.Compose([*_fixed_crop(image_size, eval_crop), unit_floats])


def _fixed_crop(image_size: int, eval_crop: float) -> list[v2.Transform]:
    return [v2.Resize(round(image_size / eval_crop), antialias=True), v2.CenterCrop(image_size)]


def unit_floats(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as float32 (3, height, width): bytes divided by 255, bit for bit what ToTensor gives.

    (v2's ToDtype multiplies by 1/255 instead, which rounds differently.)
    """
    return v2.functional.pil_to_tensor(picture).to(torch.float32).div_(255)


def _check(image_size: int, eval_crop: float) -> None:
    if image_size < 1:
        raise UserError(f"image_size must be at least 1 pixel, got {image_size}; use the backbone's own size")
    if not 0 < eval_crop <= 1:
        raise UserError(
            f"stream.eval_crop must be above 0 and at most 1, got {eval_crop}; "
            "use 0.875 for photographs, 1.0 for no crop"
        )


def _checked_scale(crop_scale: Sequence[float]) -> tuple[float, float]:
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise UserError(
            "stream.crop_scale must be [least, most] with 0 < least <= most <= 1, "
            f"got {list(crop_scale)}; use [0.08,1.0], or null for no random crop"
        )
    return float(crop_scale[0]), float(crop_scale[1])
