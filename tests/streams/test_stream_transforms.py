from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1

from smope.errors import UserError
from smope.streams.transforms import evaluation_transform, training_transform


def noise(seed: int, width: int, height: int) -> Image.Image:
    values = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(values)


SHAPES = [(32, 32), (320, 240), (200, 300), (64, 500)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize(("size", "eval_crop", "resized"), [(224, 0.875, 256), (224, 1.0, 224), (32, 1.0, 32)])
def test_evaluation_equals_plain_torchvision(width, height, size, eval_crop, resized):
    picture = noise(1, width, height)
    plain = v1.Compose([v1.Resize(resized), v1.CenterCrop(size), v1.ToTensor()])
    image = evaluation_transform(size, eval_crop)(picture)
    assert image.dtype == torch.float32 and image.shape == (3, size, size)
    assert torch.equal(image, plain(picture))


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_training_equals_plain_torchvision(width, height):
    picture = noise(2, width, height)
    plain = v1.Compose([v1.RandomResizedCrop(64, scale=(0.2, 0.9)), v1.RandomHorizontalFlip(), v1.ToTensor()])
    ours = training_transform(64, [0.2, 0.9], True, 1.0)
    for seed in range(8):
        torch.manual_seed(seed)
        expected = plain(picture)
        torch.manual_seed(seed)
        assert torch.equal(ours(picture), expected)


def test_training_without_a_random_crop():
    picture = noise(3, 100, 60)
    plain = evaluation_transform(32, 0.875)(picture)
    assert torch.equal(training_transform(32, None, False, 0.875)(picture), plain)
    flipped = {bool(torch.equal(training_transform(32, None, True, 0.875)(picture), plain)) for _ in range(40)}
    assert flipped == {True, False}


def test_matching_sizes_are_not_resampled():
    picture = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
    expected = torch.from_numpy(picture.astype(numpy.float32) / 255).permute(2, 0, 1)
    for transform in (evaluation_transform(32, 1.0), training_transform(32, None, False, 1.0)):
        assert torch.equal(transform(Image.fromarray(picture)), expected)


@pytest.mark.parametrize("crop_scale", [[0.0, 1.0], [0.5, 0.4], [0.5, 1.1], [0.5], [0.1, 0.2, 0.3]])
def test_wrong_crop_scales_are_refused(crop_scale):
    with pytest.raises(UserError, match=r"stream\.crop_scale must be \[least, most\] with .*; use .*null"):
        training_transform(32, crop_scale, True, 1.0)


@pytest.mark.parametrize("eval_crop", [0.0, -1.0, 1.5])
def test_wrong_eval_crops_are_refused(eval_crop):
    with pytest.raises(UserError, match=rf"stream\.eval_crop must be above 0 and at most 1, got {eval_crop}; use"):
        evaluation_transform(32, eval_crop)


def test_wrong_image_sizes_are_refused():
    with pytest.raises(UserError, match=r"image_size must be at least 1 pixel, got 0; use"):
        evaluation_transform(0, 1.0)
