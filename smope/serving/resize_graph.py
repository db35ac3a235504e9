"""Resizing and cropping as part of an exported graph: bytes of any size -> what a backbone reads.

The arithmetic is that of PyTorch's antialiased bilinear kernel for bytes, as in
smope/streams/pixels/partial_resize.py: weights as whole numbers, columns before rows, and bytes in
between. So the graph gives the pixels of the run's own evaluation. Every size is a tensor, since
the graph is recorded once and runs on pictures of all sizes.

Letters: B batch, H and W height and width of the pictures, S image side, n pixels of one axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smope.streams.pixels.partial_resize import MAX_PRECISION_BITS, MAX_WEIGHT
from smope.streams.pixels.transforms import Evaluation


class ResizeAndCrop(nn.Module):
    """Pictures (B, H, W, 3) uint8, all of one size -> (B, 3, S, S) float32 in [0, 1]."""

    powers: Tensor

    def __init__(self, transform: Evaluation) -> None:
        super().__init__()
        self.side = transform.image_size
        self.shorter_side = transform.shorter_side
        powers = 2.0 ** torch.arange(MAX_PRECISION_BITS + 1, dtype=torch.float64)
        self.register_buffer("powers", powers, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        rows = torch.arange(pictures.shape[1], dtype=torch.float64)
        columns = torch.arange(pictures.shape[2], dtype=torch.float64)
        # (1,), since the ONNX exporter computes with scalars in float32
        height, width = rows[-1:] + 1, columns[-1:] + 1
        pixels = pictures.permute(0, 3, 1, 2).double()
        shortest = torch.minimum(height, width)
        pixels = self._resized(pixels, columns, width, shortest)
        pixels = self._resized(pixels.transpose(-2, -1), rows, height, shortest)
        return pixels.transpose(-2, -1).float() / 255

    def _resized(self, pixels: Tensor, positions: Tensor, size: Tensor, shortest: Tensor) -> Tensor:
        """The central S pixels of the resized last axis.

        Args:
            pixels: (B, 3, m, n) float64, whole numbers in 0..255.
            positions: (n,) float64, 0 to n - 1.
            size: (1,), n.
            shortest: (1,), the shorter side of the picture.

        Returns:
            (B, 3, m, S) float64, whole numbers in 0..255.
        """
        resized = torch.floor(self.shorter_side * size / shortest)
        # rounds half to even, as Python does
        offset = torch.round((resized - self.side) / 2)
        shown = offset + torch.arange(self.side, dtype=torch.float64)
        ends = [torch.zeros_like(resized), resized - 1]
        weights = _triangle(torch.cat([shown, *ends]), positions, size, resized)
        # Of the whole axis the first and the last pixel have the largest weights, unless one of
        # those that are shown has; enlarged, they are copies.
        largest = torch.where(size > resized, weights.amax().view(1), torch.ones_like(size))
        fits = torch.floor(0.5 + largest * self.powers[1:]) < MAX_WEIGHT
        power = (self.powers * (torch.arange(len(self.powers)) == fits.sum())).sum(-1, keepdim=True)
        whole = torch.floor(weights[: self.side] * power + 0.5)
        total = pixels @ whole.T  # exact: whole numbers below 2**53
        return torch.floor((total + power / 2) / power).clamp(0, 255)


def _triangle(outputs: Tensor, positions: Tensor, size: Tensor, resized: Tensor) -> Tensor:
    """How much each pixel counts for some pixels of the resized axis.

    Args:
        outputs: (m,) float64, numbers of resized pixels.
        positions: (n,) float64, numbers of the picture's pixels.
        size: (1,), n.
        resized: (1,), pixels of the whole resized axis.

    Returns:
        (m, n) float64; rows sum to 1.
    """
    scale = size / resized
    support = scale.clamp(min=1)
    centres = (scale * (outputs + 0.5))[:, None]
    first = torch.floor((centres - support + 0.5).clamp(min=0))
    end = torch.minimum(torch.floor(centres + support + 0.5), size)
    distance = (positions - centres + 0.5) * (1.0 / support)
    weights = (1.0 - distance.abs()).clamp(min=0)
    weights = weights * ((positions >= first) & (positions < end))
    return weights / weights.sum(-1, keepdim=True)
