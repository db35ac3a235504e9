"""The linear probe converges to what its docstring says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from smope.methods.base import TaskSpan
from smope.methods.linear_probe import LinearProbe
from tests.tiny import tiny_backbone, tiny_stream


def make(**options) -> LinearProbe:
    torch.manual_seed(0)
    return LinearProbe(tiny_backbone(), 4, **options).double()


def learn_task(method: LinearProbe, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    task = tiny_stream().tasks[index]
    images, labels = zip(*(task.train_plain[i] for i in range(len(task.train_plain))), strict=True)
    batch = torch.stack(images).double(), torch.tensor(labels)
    with torch.no_grad():
        method.end_task(TaskSpan(index, 2 * index, 2 * index + 2), lambda _: iter([batch]))
    return method.features(batch[0]), batch[1]


def test_a_fit_ends_where_the_gradient_is_zero():
    method = make(penalty=0.1, competing="seen")
    learn_task(method, 0)
    before = method.classifier.weight.detach().clone()
    features, labels = learn_task(method, 1)
    weight = method.classifier.weight.detach().clone().requires_grad_()
    bias = method.classifier.bias.detach().clone().requires_grad_()
    loss = (
        F.cross_entropy(features @ weight.T + bias, labels)
        + 0.1 / 2 * (weight - before).square().sum()
    )
    start = F.cross_entropy(features @ before.T + bias, labels)
    loss.backward()
    assert loss < start
    assert weight.grad is not None and weight.grad.abs().max() < 1e-5
    assert bias.grad is not None and bias.grad.abs().max() < 1e-5


def test_a_masked_fit_leaves_other_classes_alone():
    method = make(competing="task")
    learn_task(method, 0)
    before = method.classifier.weight.detach().clone()
    learn_task(method, 1)
    assert torch.equal(method.classifier.weight[:2], before[:2])
    assert not torch.equal(method.classifier.weight[2:], before[2:])


@pytest.mark.parametrize(("competing", "kept"), [("seen", False), ("task", True)])
def test_all_classes_competing_means_forgetting(competing, kept):
    method = make(competing=competing)
    features, labels = learn_task(method, 0)
    assert (method.classify(features).argmax(1) == labels).all()
    learn_task(method, 1)
    right = (method.classify(features).argmax(1) == labels).double().mean()
    assert (right > 0.5) == kept
