"""Images and labels of a user's loop, checked before torch or timm fail on them.

Letters: B batch, S image side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smope.errors import UserError


def checked_images(images: Any, side: int) -> Tensor:
    """Images that a backbone takes.

    Args:
        images: what should be (B, 3, S, S) in [0, 1].
        side: S.

    Returns:
        The same.

    Raises:
        UserError: they are no tensor of fractions, of another shape or, on a CPU, not finite.
    """
    shape = f"(B, 3, {side}, {side})"
    if not isinstance(images, Tensor):
        raise UserError(
            f"images must be a tensor {shape}, got a {type(images).__name__}; write for example "
            f"torch.stack(list_of_images)"
        )
    if images.ndim != 4 or images.shape[1:] != (3, side, side):
        way_out = "resize them" if images.ndim == 4 else "for one image write image[None]"
        raise UserError(f"images must be {shape}, got {tuple(images.shape)}; {way_out}")
    if not images.is_floating_point():
        raise UserError(
            f"images must be numbers in [0, 1], got {images.dtype}; divide bytes by 255: "
            f"images.float() / 255"
        )
    if _is_known(images) and not images.detach().sum(dtype=torch.float64).isfinite():
        raise UserError(
            "images must be numbers in [0, 1], and some are nan or inf; look for images that were "
            "divided by zero"
        )
    return images


def check_pairs(images: Tensor, labels: Any) -> None:
    """Check that a batch has a class id for each image.

    Args:
        images: (B, 3, S, S).
        labels: what should be (B,).

    Raises:
        UserError: the batch is empty, or labels are no tensor of whole numbers, one for each image.
    """
    if not isinstance(labels, Tensor):
        raise UserError(
            f"labels must be a tensor of class ids (B,), got a {type(labels).__name__}; write "
            f"torch.as_tensor(labels)"
        )
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise UserError(
            f"labels must be class ids (B,), whole numbers, got {tuple(labels.shape)} of "
            f"{labels.dtype}; write labels.argmax(-1) for one-hot rows, labels.long() for floats"
        )
    if len(images) == 0:
        raise UserError("images: the batch is empty; leave it out")
    if len(labels) != len(images):
        raise UserError(
            f"labels must be as many as the images, got {len(labels)} for {len(images)}; give each "
            f"image its class id"
        )


def finite(loss: Tensor) -> Tensor:
    """A loss; UserError where it is no number, on a CPU."""
    if _is_known(loss) and not loss.isfinite():
        raise UserError(
            f"loss: became {loss.item()}; lower the learning rate, and look at the images of this "
            f"batch"
        )
    return loss


def _is_known(numbers: Tensor) -> bool:
    """Whether numbers can be looked at without waiting for a device."""
    return type(numbers) is Tensor and numbers.device.type == "cpu"
