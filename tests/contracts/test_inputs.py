"""What a loop of one's own may give a method, and what is refused in one line."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smope.backbones.pixel_range import SAMPLED
from smope.errors import UserError
from smope.methods.base import Method, TaskSpan
from tests.tiny import frozen, tiny_backbone, tiny_vit

from .conftest import every_method

SECOND_TASK = TaskSpan(1, 2, 4)
NEW = torch.tensor([2, 3, 2])


def pixels(images: int = 3) -> Tensor:
    return torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@every_method
@pytest.mark.parametrize("batch", ["integers", "floats", "floats after a right batch"])
def test_bytes_are_refused(batch: str, method: Method) -> None:
    method, images = copy.deepcopy(method), 255 * pixels()
    if batch == "integers":
        images = images.to(torch.uint8)
    if "after" in batch:
        method(pixels())
    with pytest.raises(UserError, match=r"images must be numbers in \[0, 1\], got .*divide bytes"):
        method(images)
    with pytest.raises(UserError, match=r"images must be numbers in \[0, 1\], got .*divide bytes"):
        method.train().losses(images, NEW, SECOND_TASK)


def test_normalised_pixels_are_warned_of_once() -> None:
    backbone = tiny_backbone(depth=1)
    with pytest.warns(UserWarning, match=r"images are in -1..1, .* leave out the normalisation"):
        backbone((pixels() - 0.5) / 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone((pixels() - 0.5) / 0.5)


def test_a_backbone_without_statistics_takes_normalised_pixels() -> None:
    """As with backbone.pixel_statistics=none, where a loop of one's own normalises."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frozen(tiny_vit(depth=1), mean=0.0, std=1.0)((pixels() - 0.5) / 0.5)


def test_pixels_a_little_outside_are_taken() -> None:
    """Resampling and noise leave [0, 1]."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_backbone(depth=1)(1.4 * pixels() - 0.2)


def test_an_accelerator_is_read_from_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a number has the host wait; the meta device has no numbers to read at all."""
    backbone = tiny_backbone(depth=1).to("meta")
    assert backbone(pixels().to("meta")).shape == (3, 32)
    backbone = tiny_backbone(depth=1)
    read: list[int] = []
    aminmax = Tensor.aminmax
    monkeypatch.setattr(Tensor, "aminmax", lambda x: read.append(x.numel()) or aminmax(x))
    for _ in range(3):
        backbone(pixels())
    assert read == [3 * 3 * 32 * 32] + 2 * [3 * 3 * (32 // SAMPLED) ** 2]


@every_method
def test_labels_of_other_tasks_are_refused(method: Method) -> None:
    """As from a replay buffer: torch itself says `Target -2 is out of bounds`."""
    method = copy.deepcopy(method).train()
    if method.revisits:
        pytest.skip("trains on the classes of earlier tasks")
    with pytest.raises(UserError, match=r"labels must be .* task \(2\.\.3\), got 0; .*replay"):
        method.losses(pixels(), torch.tensor([2, 0, 3]), SECOND_TASK)
    with pytest.raises(UserError, match=r"labels must be .* task \(0\.\.2\), got 1; .*replay"):
        method.losses(pixels(), torch.tensor([2, 1, 0]), replace(SECOND_TASK, classes=(0, 2)))


@every_method
def test_labels_of_other_tasks_by_the_way_out(method: Method) -> None:
    """The advice of that error: all classes so far compete."""
    method = copy.deepcopy(method).train()
    wide = replace(SECOND_TASK, classes=tuple(range(SECOND_TASK.stop)))
    losses = method.losses(pixels(), torch.tensor([2, 0, 3]), wide)
    assert all(value.isfinite() for value in losses.values())
    with pytest.raises(UserError, match=r"labels must be .* task \(0\.\.3\), got 4"):
        method.losses(pixels(), torch.tensor([2, 0, 4]), wide)
