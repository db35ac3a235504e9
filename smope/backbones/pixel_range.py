"""Whether images are what a backbone takes: numbers in [0, 1].

Bytes or normalised pixels would give features without meaning, and no error.

Shapes: B batch, S side of an image in pixels.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from smope.backbones.attention import exporting
from smope.errors import UserError

# Resampling and noise may leave [0, 1] a little.
LOWEST, HIGHEST = -0.5, 1.5
LARGEST = 16.0  # anything above is counted in bytes; normalised pixels are smaller
SAMPLED = 8  # every so many rows and columns are looked at after the first batch


class PixelRange:
    """Checks the images of one backbone; the first batch as a whole.

    On a CPU a sample of every later batch is checked too, which takes microseconds. On an
    accelerator that would have every step wait for it, so that only the type of numbers is checked.
    """

    def __init__(self, normalises: bool) -> None:
        """`normalises`: whether the backbone subtracts a mean; if not, images may be normalised."""
        self._begun = False
        self._warn = normalises

    def check(self, images: Tensor) -> None:
        """Check a batch.

        Args:
            images: (B, 3, S, S).

        Raises:
            UserError: They are integers, in 0..255 or not finite.
        """
        if not images.is_floating_point():
            raise UserError(
                f"images must be numbers in [0, 1], got {images.dtype}; divide bytes by 255: "
                f"images.float() / 255"
            )
        if not _has_numbers(images) or (self._begun and images.device.type != "cpu"):
            return
        seen = images.detach()[..., ::SAMPLED, ::SAMPLED] if self._begun else images.detach()
        lowest, highest = (float(bound) for bound in seen.aminmax())
        if not math.isfinite(highest - lowest):
            raise UserError(
                "images must be numbers in [0, 1], and some are nan or inf; replace them"
            )
        if highest > LARGEST:
            raise UserError(
                f"images must be numbers in [0, 1], got {lowest:.3g}..{highest:.3g}; divide bytes "
                f"by 255: images / 255"
            )
        self._begun = True
        if self._warn and (lowest < LOWEST or highest > HIGHEST):
            self._warn = False
            warnings.warn(
                f"images are in {lowest:.3g}..{highest:.3g}, and a backbone takes pixels in "
                f"[0, 1]; leave out the normalisation, which the backbone does itself",
                stacklevel=2,
            )


def _has_numbers(images: Tensor) -> bool:
    """Whether the values can be read: not on the meta device, and not while a graph is recorded."""
    recorded = torch.compiler.is_compiling() or exporting()
    real = type(images) in (Tensor, torch.nn.Parameter) and images.device.type != "meta"
    return real and not recorded and images.numel() > 0
