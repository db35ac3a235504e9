"""MiN's mixture equals slow loops written from the paper, and what learns when."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from smope.methods.base import TaskSpan
from smope.methods.min import MiN, first_mixture
from tests.tiny import tiny_backbone

BLOCKS = [1, 6]


def make(**options) -> MiN:
    torch.manual_seed(0)
    options = {"noise_width": 8, "blocks": BLOCKS, "width": 40, **options}
    method = MiN(tiny_backbone(), 4, 3, **options)
    with torch.no_grad():
        for parameter in method.prompt_parameters():
            parameter.normal_()
    return method.double()


def slow_features(method: MiN, images, noise):
    """Block by block and task by task; noise (L, D), or None for its mean."""
    vit = make().backbone.vit  # of the same weights
    pixels = (images - 0.5) / 0.5
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
    for number, wrapper in enumerate(vit.blocks):
        x = getattr(wrapper, "layer", wrapper)(x)
        if number not in BLOCKS:
            continue
        level = BLOCKS.index(number)
        rows = []
        for token in x.flatten(0, 1):
            h = token @ method.down[level]
            total = torch.zeros(8).double()
            for task in range(3):
                drawn = h @ method.means[level, task]
                if noise is not None:
                    drawn = drawn + noise[level] * (h @ method.scales[level, task])
                total = total + method.mixture[level, task] * drawn
            rows.append(token + total @ method.up[level])
        x = torch.stack(rows).view_as(x)
    return vit.norm(x)[:, 0]


@pytest.mark.parametrize("training", [False, True])
def test_the_mixture_equals_the_slow_loop(training):
    method = make().train(training)
    images = torch.rand(2, 3, 32, 32).double()
    with torch.no_grad():
        found = method.features(images)
        noise = method._step_noise() if training else None
        expected = slow_features(method, images, noise)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_weights_start_from_the_similarity_of_tasks():
    prototypes = torch.randn(4, 7)
    cosines = [float(F.cosine_similarity(row, prototypes[3], 0)) for row in prototypes]
    powers = [math.exp(cosine / 2) for cosine in cosines]
    expected = torch.tensor([power / sum(powers) for power in powers])
    torch.testing.assert_close(first_mixture(prototypes, 2.0), expected)


def test_the_module_of_the_task_and_the_mixture_learn_alone():
    method = make().train()
    task = TaskSpan(1, 2, 4)
    method.task.fill_(1)
    images, labels = torch.rand(3, 3, 32, 32).double(), torch.tensor([2, 3, 3])
    sum(method.losses(images, labels, task).values()).backward()
    for modules in (method.means, method.scales):
        learning = modules.grad.flatten(2).abs().sum(2) > 0
        assert learning.tolist() == [[False, True, False]] * len(BLOCKS)
    assert (method.mixture.grad != 0).all()
    assert method.ridge.projection.grad is None


def test_the_loss_adds_what_ridge_knows_without_learning_through_it():
    method = make().eval()
    method.ridge.weight.normal_()
    images, labels = torch.rand(3, 3, 32, 32).double(), torch.tensor([2, 3, 3])
    loss = method.losses(images, labels, TaskSpan(1, 2, 4))["cross_entropy"]
    z = (method.features(images) @ method.ridge.projection).relu()
    logits = z @ method.classifier.weight.T / math.sqrt(120) + z @ method.ridge.weight.T
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
    with torch.no_grad():
        method.classifier.weight.zero_()
    method.losses(images, labels, TaskSpan(1, 2, 4))["cross_entropy"].backward()
    assert not method.means.grad.any(), "W_aux is 0, and no gradient passes W"


def test_noise_stays_for_a_step_and_differs_in_the_next():
    method = make().train()
    first = method._step_noise()
    assert torch.equal(method._step_noise(), first)
    method.end_step()
    assert not torch.equal(method._step_noise(), first)


def test_each_image_is_in_the_sums_once(stream, learn):
    method = MiN(tiny_backbone(), 4, 3, noise_width=8, width=40)
    learn(method, stream)
    assert int(method.ridge.sums.images) == sum(len(task.train) for task in stream.tasks)
    learned = len(stream.tasks)
    assert (method.prototypes.any(1)).sum() == learned
    assert (method.mixture[:, :learned] != 0).all() and not method.mixture[:, learned:].any()
