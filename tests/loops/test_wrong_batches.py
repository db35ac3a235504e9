"""Batches that do not fit are refused in one line, before torch or timm fail on them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import smope
from smope.errors import UserError
from smope.loops import class_ids
from smope.loops.learner import Learner
from tests.tiny import tiny_backbone

IMAGES, LABELS = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
NAN = IMAGES.clone()
NAN[3, 1, 5, 5] = torch.nan
SIDE = r"images must be (a tensor )?\(B, 3, 32, 32\), got "
# images, labels, and what the error says
BATCHES: dict[str, tuple[Any, Any, str]] = {
    "a smaller image": (IMAGES[..., ::2, ::2], LABELS, SIDE + r"\(6, 3, 16, 16\); resize them"),
    "gray images": (IMAGES[:, :1], LABELS, SIDE + r"\(6, 1, 32, 32\)"),
    "an image": (IMAGES[0], LABELS[:1], SIDE + r"\(3, 32, 32\); for one image write image\[None\]"),
    "a list": (list(IMAGES), LABELS, SIDE + r"a list; write for example torch\.stack"),
    "an array": (IMAGES.numpy(), LABELS, SIDE + "a ndarray"),
    "bytes": ((IMAGES * 255).byte(), LABELS, "images must be numbers in .* divide bytes by 255"),
    "not a number": (NAN, LABELS, "images must be numbers in .*, and some are nan or inf"),
    "infinite": (IMAGES / 0, LABELS, "images must be numbers in .*, and some are nan or inf"),
    "no image": (IMAGES[:0], LABELS[:0], "images: the batch is empty"),
    "fewer labels": (IMAGES, LABELS[:4], "labels must be as many as the images, got 4 for 6"),
    "floats": (IMAGES, LABELS.float(), r"labels must be class ids \(B,\), whole numbers, got"),
    "one-hot": (IMAGES, torch.eye(4)[LABELS], r"labels must be .*; write labels\.argmax"),
    "a column": (IMAGES, LABELS[:, None], r"labels must be class ids \(B,\)"),
    "names": (IMAGES, ["cat"] * 6, "labels must be a tensor of class ids .*, got a list"),
    "negative": (IMAGES, LABELS - 1, r"labels: class -1 is not in 0\.\.3; number your classes"),
    "too large": (IMAGES, LABELS * 2, r"labels: class 4 is not in 0\.\.3; .* larger num_classes"),
    "another task's": (IMAGES, LABELS + 1, "labels: class 3 is not of the current task; name all"),
}  # fmt: skip
each_batch = pytest.mark.parametrize("case", BATCHES)


@pytest.fixture
def learner() -> Learner:
    learner = smope.Finetune(tiny_backbone(), 4, seed=0)
    learner.begin_task([0, 1, 2])
    return learner


def refused(action: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=f"^{words}") as caught:
        action()
    assert "\n" not in str(caught.value)


@each_batch
def test_a_loss(case: str, learner: Learner) -> None:
    images, labels, words = BATCHES[case]
    learner.loss(IMAGES, LABELS)  # also after a first batch, which is looked at more closely
    refused(lambda: learner.loss(images, labels), words)


@each_batch
def test_the_end_of_a_task(case: str) -> None:
    images, labels, words = BATCHES[case]
    learner = smope.NearestClassMean(tiny_backbone(), 4)
    learner.begin_task([0, 1, 2])
    refused(lambda: learner.end_task([(IMAGES, LABELS), (images, labels)]), f"loader: {words}")


def test_predictions(learner: Learner) -> None:
    for images, labels, words in BATCHES.values():
        if labels is LABELS and len(images) == 6:
            refused(lambda images=images: learner.predict(images), words)
            refused(lambda images=images: learner(images), words)
    assert learner.predict(IMAGES[:0]).shape == (0,)


def test_floats_of_another_precision_are_taken(learner: Learner) -> None:
    expected = learner.loss(IMAGES, LABELS)
    torch.testing.assert_close(learner.loss(IMAGES.double(), LABELS.int()), expected)
    pixels = torch.from_numpy(IMAGES.numpy().astype(numpy.float64))
    assert torch.equal(learner.predict(pixels), learner.predict(IMAGES))


def test_a_loss_that_is_no_number(learner: Learner) -> None:
    with torch.no_grad():
        learner.method.classifier.weight.fill_(torch.inf)
    refused(lambda: learner.loss(IMAGES, LABELS), "loss: became nan; lower the learning rate")


def test_images_of_earlier_classes_do_not_end_a_task() -> None:
    learner = smope.NearestClassMean(tiny_backbone(), 4)
    learner.begin_task([0, 1, 2])
    learner.end_task([(IMAGES, LABELS)])
    learner.begin_task([3])
    batch = (IMAGES[:1], LABELS[:1])
    refused(
        lambda: learner.end_task([batch]), "loader: labels: class 0 .*images of this task alone"
    )


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers on this device are known late, as those of a GPU."""
    monkeypatch.setattr(class_ids, "_is_late", lambda device: True)


def wrong(class_id: int) -> Tensor:
    labels = LABELS.clone()
    labels[2] = class_id
    return labels


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("class_id", [-1, 3, 4, -(2**40)])
def test_on_an_accelerator_labels_are_refused_with_the_next_batch(
    class_id: int, learner: Learner
) -> None:
    words = f"labels: class {class_id}.* is not "
    refused(lambda: learner.loss(IMAGES, wrong(class_id)), words)  # the first of a task: at once
    learner.loss(IMAGES, LABELS)
    assert learner.loss(IMAGES, wrong(class_id)).isfinite(), "no step waits for it"
    pickle.loads(pickle.dumps(learner._progress)), copy.deepcopy(learner)
    later = words.replace(".*", r" \(in an earlier batch.*\).*")
    refused(lambda: learner.loss(IMAGES, LABELS), later)
    learner.loss(IMAGES, wrong(class_id))
    refused(lambda: learner.end_task([(IMAGES, LABELS)]), later)


@pytest.mark.usefixtures("late")
def test_on_an_accelerator_the_loss_is_the_same(learner: Learner) -> None:
    losses = [learner.loss(IMAGES, LABELS) for _ in range(2)]
    learner.end_task([(IMAGES, LABELS)])
    learner.begin_task([3])
    later = learner.loss(IMAGES, LABELS, competing="seen")
    other = smope.Finetune(tiny_backbone(), 4, seed=0)
    other.begin_task([0, 1, 2])
    assert other.loss(IMAGES, LABELS) == losses[0] == losses[1]
    other.end_task([(IMAGES, LABELS)])
    other.begin_task([3])
    assert other.loss(IMAGES, LABELS, competing="seen") == later
