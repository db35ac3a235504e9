from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from smope.errors import UserError
from smope.streams.pixels import transforms
from smope.streams.pixels.transforms import Evaluation, Training, collate, cut, resample

SHAPES = [(32, 32), (240, 320), (300, 200), (500, 64), (33, 47), (1, 7)]


def noise(seed: int, height: int, width: int) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)


def shown(
    transform, pixels: numpy.ndarray, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return resample(
        collate([(*cut(pixels, transform, random.Random(seed)), 0)]), transform.image_size, dtype
    )[0]


def by_products(transform, pixels: numpy.ndarray, seed: int = 0) -> torch.Tensor:
    """As accelerators compute it."""
    batch = collate([(*cut(pixels, transform, random.Random(seed)), 0)])
    return transforms._resample_padded(
        batch.pixels, batch.windows, transform.image_size, torch.float32
    )[0]


def floats(pixels: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).double() / 255


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize(
    ("size", "eval_crop", "resized"), [(224, 0.875, 256), (224, 1.0, 224), (32, 1.0, 32)]
)
def test_evaluation_equals_torchvision(height, width, size, eval_crop, resized):
    """Bytes as Pillow has them, which rounds twice, to 2; the products, on floating-point images,
    to 5e-5.
    """
    pixels = noise(1, height, width)
    image = shown(Evaluation(size, eval_crop), pixels)
    assert image.dtype == torch.float32 and image.shape == (3, size, size)
    plain = v2.Compose([v2.Resize(resized, antialias=True), v2.CenterCrop(size)])
    assert (
        by_products(Evaluation(size, eval_crop), pixels) - plain(floats(pixels))
    ).abs().max() < 5e-5
    by_pillow = v1.Compose([v1.Resize(resized), v1.CenterCrop(size), v1.ToTensor()])(
        Image.fromarray(pixels)
    )
    assert (image - by_pillow).abs().max() < 2.01 / 255


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_crops_equal_torchvision(height, width):
    pixels = noise(2, height, width)
    transform = Training(64, (0.2, 0.9), True, 1.0)
    flips = set()
    for seed in range(12):
        window = transform.window(height, width, random.Random(seed))
        box = (window.top, window.left, window.height, window.width)
        expected = v2.functional.resized_crop(floats(pixels), *box, [64, 64], antialias=True)
        expected = expected.flip(-1) if window.flip else expected
        assert (by_products(transform, pixels, seed) - expected).abs().max() < 5e-5
        assert (shown(transform, pixels, seed) - expected).abs().max() < 2.01 / 255
        flips.add(window.flip)
    assert flips == {True, False}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (240, 320), (500, 64), (40, 500)])
def test_crops_are_distributed_as_torchvisions(height, width):
    """Position, size, area and proportions over 4,000 draws: no distribution function is off by
    more than chance allows (Kolmogorov and Smirnov, one in a thousand). The last two shapes often
    fall back to the central part.
    """
    draws = 4000
    transform = Training(32, (0.08, 1.0), False, 1.0)
    ours = numpy.array(
        [transform.window(height, width, random.Random(i))[:4] for i in range(draws)]
    )
    torch.manual_seed(0)
    blank = torch.empty(3, height, width)
    theirs = numpy.array(
        [
            v1.RandomResizedCrop.get_params(blank, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
            for _ in range(draws)
        ]
    )
    for statistic in (*(lambda box, i=i: box[:, i] for i in range(4)), area, proportions):
        a, b = numpy.sort(statistic(ours)), numpy.sort(statistic(theirs))
        at = numpy.union1d(a, b)
        apart = (
            numpy.abs(numpy.searchsorted(a, at, "right") - numpy.searchsorted(b, at, "right")).max()
            / draws
        )
        assert apart < 1.95 * (2 / draws) ** 0.5


def area(box: numpy.ndarray) -> numpy.ndarray:
    return box[:, 2] * box[:, 3]


def proportions(box: numpy.ndarray) -> numpy.ndarray:
    return box[:, 3] / box[:, 2]


def test_half_of_the_images_are_mirrored():
    transform = Training(8, (0.5, 1.0), True, 1.0)
    assert 420 < sum(transform.window(20, 20, random.Random(i)).flip for i in range(1000)) < 580
    still = Training(8, (0.5, 1.0), False, 1.0)
    assert not any(still.window(20, 20, random.Random(i)).flip for i in range(50))


def test_training_without_a_random_crop():
    pixels = noise(3, 60, 100)
    plain = shown(Evaluation(32, 0.875), pixels)
    assert torch.equal(shown(Training(32, None, False, 0.875), pixels), plain)
    images = [shown(Training(32, None, True, 0.875), pixels, seed) for seed in range(20)]
    flipped = [image for image in images if not torch.equal(image, plain)]
    assert 0 < len(flipped) < 20 and all(
        (image.flip(-1) - plain).abs().max() < 1e-6 for image in flipped
    )


def test_matching_sizes_are_not_resampled():
    pixels = noise(0, 32, 32)
    for transform in (Evaluation(32, 1.0), Training(32, None, False, 1.0)):
        assert torch.equal(
            shown(transform, pixels), torch.from_numpy(pixels).permute(2, 0, 1) / 255
        )


def test_a_batch_is_its_images_one_by_one():
    """Of unequal sizes, so that they are padded, and whatever lies in the padding."""
    transform = Training(24, (0.1, 1.0), True, 1.0)
    pictures = [noise(i, 20 + 7 * i, 60 - 5 * i) for i in range(6)]
    parts = [(*cut(pixels, transform, random.Random(i)), i) for i, pixels in enumerate(pictures)]
    batch = collate(parts)
    assert batch.labels.tolist() == list(range(6)) and batch.pixels.dtype == torch.uint8
    images = resample(batch, 24)
    for i, image in enumerate(images):
        assert torch.equal(image, resample(collate(parts[i : i + 1]), 24)[0])


def test_padding_counts_for_nothing():
    transform = Training(24, (0.3, 1.0), True, 1.0)
    pictures = [noise(i, 30 + 9 * i, 50) for i in range(4)]
    parts = [(*cut(pixels, transform, random.Random(i)), i) for i, pixels in enumerate(pictures)]
    batch = collate(parts)
    for row, (pixels, _, _) in zip(batch.pixels, parts, strict=True):
        row[pixels.shape[0] :] = 255
        row[:, pixels.shape[1] :] = 255
    padded = transforms._resample_padded(batch.pixels, batch.windows, 24, torch.float32)
    for i, image in enumerate(padded):
        assert (image - by_products(transform, pictures[i], i)).abs().max() < 1e-5
    assert torch.equal(resample(batch, 24), resample(collate(parts), 24))


@pytest.mark.parametrize(
    "crop_scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (0.5,), (0.1, 0.2, 0.3)]
)
def test_wrong_crop_scales_are_refused(crop_scale):
    with pytest.raises(
        UserError, match=r"stream\.crop_scale must be \[least, most\] with .*; use .*null"
    ):
        Training(32, crop_scale, True, 1.0)


@pytest.mark.parametrize("eval_crop", [0.0, -1.0, 1.5])
def test_wrong_eval_crops_are_refused(eval_crop):
    with pytest.raises(
        UserError, match=rf"stream\.eval_crop must be above 0 and at most 1, got {eval_crop}; use"
    ):
        Evaluation(32, eval_crop)


def test_wrong_image_sizes_are_refused():
    with pytest.raises(UserError, match=r"image_size must be at least 1 pixel, got 0; use"):
        Evaluation(0, 1.0)


LONG_SHAPES = [
    (1, 500), (500, 1), (3, 1000), (33, 4000), (2000, 300), (256, 1000), (300, 900), (997, 331),
    (255, 5000), (257, 5000), (500, 1100), (64, 500), (32, 90), (1, 20_000), (7, 15),
]  # fmt: skip


@pytest.mark.parametrize(("height", "width"), LONG_SHAPES)
@pytest.mark.parametrize(("size", "eval_crop"), [(224, 0.875), (32, 1.0), (97, 0.6)])
def test_a_part_of_a_long_picture_is_that_of_the_whole(height, width, size, eval_crop, monkeypatch):
    """Bit for bit what PyTorch's kernel makes of the whole picture, and nearly so by products."""
    monkeypatch.setattr(transforms, "MAX_RESIZED_RATIO", 2)
    pixels = noise(height + width, height, width)
    transform = Evaluation(size, eval_crop)
    window = transform.window(height, width, random.Random(0))
    assert window.is_long
    if max(height, width) < 10_000:
        whole = torch.nn.functional.interpolate(
            torch.from_numpy(pixels).permute(2, 0, 1)[None],
            (window.resized_height, window.resized_width),
            mode="bilinear",
            antialias=True,
        )[0]
        rows = slice(window.offset_top, window.offset_top + size)
        columns = slice(window.offset_left, window.offset_left + size)
        assert torch.equal(
            (shown(transform, pixels) * 255).round(), whole[:, rows, columns].float()
        )
    assert (by_products(transform, pixels) - shown(transform, pixels)).abs().max() < 2.01 / 255


def test_long_pictures_of_a_batch_are_not_padded_to_their_length():
    pictures = [noise(0, 1, 20_000), noise(1, 20_000, 1), noise(2, 30, 40)]
    parts = [(*cut(pixels, Evaluation(32, 0.875), random.Random(0)), 0) for pixels in pictures]
    batch = collate(parts)
    assert batch.pixels.shape == (3, 30, 40, 3)
    for image, part in zip(resample(batch, 32), parts, strict=True):
        assert torch.equal(image, resample(collate([part]), 32)[0])


MEASURE = r"""
import json, random, re
import numpy, torch
from smope.streams.pixels.transforms import Evaluation, collate, cut, resample
torch.set_num_threads(1)

def status(name):
    return int(re.search(rf"{name}:\s+(\d+)", open("/proc/self/status").read())[1])

def peak(height, width):
    # Kilobytes beyond what was in use; 5 resets the highest value
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    pixels = numpy.ones((height, width, 3), numpy.uint8)
    resample(collate([(*cut(pixels, Evaluation(224, 0.875), random.Random(0)), 0)]), 224)
    return status("VmHWM") - before

shapes = [(60, 60), (60, 200), (3000, 3000), (1, 9_000_000), (9_000_000, 1), (300, 30_000)]
print(json.dumps([peak(*shape) for shape in shapes][2:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_long_pictures_take_no_more_memory_than_square_ones():
    """At most twice as much, of 9 million pixels each, and 10 MB for the measurement."""
    command = [sys.executable, "-c", MEASURE]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    square, *others = json.loads(output)
    assert square > 9e6 * 3 / 1024
    assert max(others) <= 2 * square + 10_000
