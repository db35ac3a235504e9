"""A part of a resized picture, computed from the part of the picture that it depends on.

PyTorch resizes whole pictures. Evaluation shows the central square, and of a picture that is much
longer than wide that is a small part: resizing 20,000 x 1 pixels to 5,120,000 x 256 takes gigabytes
for 224 x 224 pixels. The functions here repeat the arithmetic of PyTorch's antialiased bilinear
kernel for bytes (ATen/native/cpu/UpSampleKernel.cpp) for some rows and columns, so the pixels are
equal bit for bit: weights as 16-bit integers whose precision follows from the largest weight of the
whole axis, and bytes in between the two passes, columns first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_WEIGHT = 2**15  # weights are 16-bit integers with a sign
MAX_PRECISION_BITS = 22
CHUNK_LINES = 64  # lines of pixels that are resized at a time
CHUNK_PIXELS = 2**16  # of a resized axis whose weights are computed at a time


class Axis(NamedTuple):
    """One axis of a picture that is resized, and the part of the result that is wanted.

    size: pixels of the picture. resized: pixels of the whole result. offset, wanted: the wanted
    pixels of the result are `offset` to `offset + wanted`.
    """

    size: int
    resized: int
    offset: int
    wanted: int


def source_range(axis: Axis) -> tuple[int, int]:
    """The first pixel of the picture that the wanted pixels depend on, and the one behind the
    last.
    """
    ends = numpy.array([axis.offset, axis.offset + axis.wanted - 1])
    first, number, _ = _exact_weights(axis, ends)
    return int(first[0]), int(first[1] + number[1])


def resize(pixels: Tensor, axis: Axis, first_pixel: int) -> Tensor:
    """The wanted pixels of one axis.

    Args:
        pixels: (size of the part, n, 3) uint8, what `source_range` names of the picture or more.
        axis: runs along the first dimension.
        first_pixel: the pixel of the picture that `pixels` begins with.

    Returns:
        (wanted, n, 3) uint8.
    """
    if axis.size == axis.resized:
        return pixels[axis.offset - first_pixel : axis.offset - first_pixel + axis.wanted]
    first, _, exact = _exact_weights(axis, axis.offset + numpy.arange(axis.wanted))
    bits = _precision_bits(axis)
    weights = torch.from_numpy(numpy.floor(exact * 2**bits + 0.5))
    taps = first[:, None] - first_pixel + numpy.arange(weights.shape[1])
    taps = torch.from_numpy(taps.clip(0, pixels.shape[0] - 1))  # the weights beyond are 0
    result = pixels.new_empty((axis.wanted, *pixels.shape[1:]))
    for lines in range(0, pixels.shape[1], CHUNK_LINES):
        part = pixels[:, lines : lines + CHUNK_LINES]
        # whole numbers below 2**53, so sums in float64 are exact
        table = part.double().reshape(pixels.shape[0], -1)
        total = F.embedding_bag(taps, table, per_sample_weights=weights, mode="sum")
        rounded = ((total + 2 ** (bits - 1)) / 2**bits).floor_().clamp_(0, 255)
        result[:, lines : lines + CHUNK_LINES] = rounded.view(axis.wanted, *part.shape[1:])
    return result


def _exact_weights(
    axis: Axis, outputs: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """For these n pixels of the resized axis: the first pixel of the picture and how many count,
    both (n,), and the weights (n, K), 0 behind the last; a triangle that is wider where the picture
    shrinks.
    """
    scale = axis.size / axis.resized
    support = max(scale, 1.0)
    inverse_scale = 1.0 / scale if scale >= 1 else 1.0
    width = 2 * math.ceil(support) + 1
    centres = scale * (outputs + 0.5)
    first = (centres - support + 0.5).astype(numpy.int64).clip(0)
    number = ((centres + support + 0.5).astype(numpy.int64).clip(max=axis.size) - first).clip(
        0, width
    )
    taps = numpy.arange(width)
    distances = (taps + first[:, None] - centres[:, None] + 0.5) * inverse_scale
    weights = (1.0 - numpy.abs(distances)).clip(0) * (taps < number[:, None])
    total = numpy.zeros(len(outputs))
    for tap in range(width):  # one after another, since sums of floats depend on their order
        total += weights[:, tap]
    return first, number, weights / total[:, None]


def _precision_bits(axis: Axis) -> int:
    """How many bits the weights of the whole axis have behind the point."""
    largest = 1.0  # enlarged, the outermost pixel is a copy of the picture's
    if axis.size > axis.resized:
        largest = max(
            _exact_weights(axis, numpy.arange(start, min(start + CHUNK_PIXELS, axis.resized)))[
                2
            ].max()
            for start in range(0, axis.resized, CHUNK_PIXELS)
        )
    bits = 0
    while bits < MAX_PRECISION_BITS and int(0.5 + largest * 2 ** (bits + 1)) < MAX_WEIGHT:
        bits += 1
    return bits
