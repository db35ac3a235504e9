"""The methods with prefix prompts equal the slow loops of slow_prompts.py to 1e-10, gradients
included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smope.methods._shared.prefix_method import PrefixMethod
from smope.methods.base import TaskSpan
from smope.methods.coda import CODAPrompt
from smope.methods.deep_l2p import DeepL2P
from smope.methods.dualprompt import DualPrompt
from smope.methods.hide import HiDePrompt
from smope.methods.l2p import L2P
from smope.methods.norga import NoRGa
from smope.methods.ovor import OVOR
from smope.methods.vq import VQPrompt
from tests.tiny import frozen, tiny_vit

from .slow_prompts import (
    Prompt,
    SlowPrefixViT,
    slow_coda,
    slow_deviation,
    slow_dual,
    slow_identity,
    slow_l2p,
    slow_vq,
)
from .slow_smope import cross_entropy

CLASSES = 6
TASKS = (TaskSpan(0, 0, 3), TaskSpan(1, 3, CLASSES))
IMAGES = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
LABELS = (torch.tensor([2, 0, 1]), torch.tensor([3, 5, 5]))
QK_NORM = {"qk_norm": True}
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


class Twins:
    """A method in float64 and the slow ViT of the same weights; the slow side has leaf copies of
    the parameters.
    """

    def __init__(
        self,
        kind: Callable[..., PrefixMethod],
        vit_options: dict[str, Any] | None = None,
        **options: Any,
    ):
        sizes = {"img_size": 16, "embed_dim": 8, "depth": 4, **(vit_options or {})}
        vit = tiny_vit(seed=3, **sizes).double()
        weights = {name: value.clone() for name, value in vit.state_dict().items()}
        torch.manual_seed(5)
        self.method = kind(frozen(vit, mean=0.0, std=1.0), CLASSES, **options).double()
        self.slow = SlowPrefixViT(weights, 2, {}, 0, 0.0)
        self.copy()

    def copy(self) -> None:
        """The slow side's own parameters, as the method's are now."""
        own = {
            name: value
            for name, value in self.method.named_parameters()
            if not name.startswith("backbone.")
        }
        self.leaves = {name: value.detach().clone().requires_grad_() for name, value in own.items()}

    def query(self, image: Tensor) -> Tensor:
        return self.slow.feature(image, {}).detach()

    def feature(self, image: Tensor, blocks: list[int], prompts: list[Prompt]) -> Tensor:
        return self.slow.feature(image, dict(zip(blocks, prompts, strict=True)))

    def logits(self, feature: Tensor) -> list[Tensor]:
        return list(self.leaves["classifier.weight"] @ feature + self.leaves["classifier.bias"])

    def same_loss(self, task: TaskSpan, features: list[Tensor], *others: Any) -> None:
        """The method's losses on IMAGES add up to the slow ones, and so do their gradients."""
        labels = LABELS[task.index]
        losses = []
        for feature, label in zip(features, labels.tolist(), strict=True):
            losses.append(
                cross_entropy(self.logits(feature)[task.start : task.stop], label - task.start)
            )
        slow = sum(losses) / len(losses) + sum(others)
        ours = torch.stack(list(self.method.losses(IMAGES, labels, task).values())).sum()
        assert_equal(ours, slow)
        slow.backward()
        ours.backward()
        for name, leaf in self.leaves.items():
            found = dict(self.method.named_parameters())[name].grad
            expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            assert_equal(torch.zeros_like(leaf) if found is None else found, expected)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def mean(values: list[Any]) -> Any:
    return sum(values) / len(values)


@modes
@pytest.mark.parametrize(
    ("kind", "blocks", "vit_options"),
    [(L2P, [0], {}), (DeepL2P, [0, 2, 1], {}), (L2P, [3], QK_NORM)],
    ids=["l2p", "deep", "last block and norms"],
)
def test_l2p(
    kind: type[L2P], blocks: list[int], vit_options: dict[str, Any], training: bool
) -> None:
    twins = Twins(kind, vit_options, pool_size=5, length=2, top_k=3, blocks=blocks, pull_weight=0.3)
    method, leaves = twins.method.train(training), twins.leaves
    found = [slow_l2p(twins.query(image), leaves["keys"], leaves["prompts"], 3) for image in IMAGES]
    features = [
        twins.feature(image, blocks, prompts)
        for image, (prompts, _) in zip(IMAGES, found, strict=True)
    ]
    assert_equal(method.features(IMAGES), torch.stack(features))
    if training:
        twins.same_loss(TASKS[0], features, 0.3 * mean([away for _, away in found]))


@modes
@pytest.mark.parametrize("task", TASKS, ids=["first task", "second task"])
def test_dualprompt(task: TaskSpan, training: bool) -> None:
    sizes = {"g_length": 2, "e_length": 3, "g_blocks": [0, 1], "e_blocks": [3, 2]}
    twins = Twins(DualPrompt, total_tasks=3, pull_weight=0.5, start_from_previous=False, **sizes)
    method, leaves = twins.method.train(training), twins.leaves
    method.begin_task(task)
    found = [
        slow_dual(
            twins.query(image),
            leaves["keys"],
            leaves["general"],
            leaves["expert"],
            task.index,
            training,
        )
        for image in IMAGES
    ]
    features = [
        twins.feature(image, [0, 1, 3, 2], prompts)
        for image, (prompts, _) in zip(IMAGES, found, strict=True)
    ]
    assert_equal(method.features(IMAGES), torch.stack(features))
    if training:
        twins.same_loss(task, features, 0.5 * mean([away for _, away in found]))


@modes
@pytest.mark.parametrize("task", TASKS, ids=["first task", "second task"])
def test_coda(task: TaskSpan, training: bool) -> None:
    twins = Twins(CODAPrompt, total_tasks=2, pool_size=6, length=2, blocks=[0, 2], ortho_weight=0.1)
    method = twins.method.train(training)
    for earlier in TASKS[: task.index + 1]:
        method.begin_task(earlier)
    move(method)
    twins.copy()
    use, first = 3 * (task.index + 1), 3 * task.index
    # Earlier components are frozen: on the slow side they are other tensors.
    keys, attentions, prompts = (
        torch.cat([leaf[:, :first].detach(), leaf[:, first:]], dim=1)
        for leaf in (twins.leaves[name] for name in ("keys", "attentions", "prompts"))
    )
    found = [slow_coda(twins.query(image), keys, attentions, prompts, use) for image in IMAGES]
    features = [twins.feature(image, [0, 2], found[i]) for i, image in enumerate(IMAGES)]
    assert_equal(method.features(IMAGES), torch.stack(features))
    if training:
        vectors = [
            [one.flatten() for one in block[:use]]
            for tensor in (keys, attentions, prompts)
            for block in tensor
        ]
        twins.same_loss(task, features, 0.1 * sum(slow_deviation(one) for one in vectors))


@modes
def test_ovor_before_its_outliers(training: bool) -> None:
    twins = Twins(OVOR, g_length=2, e_length=3, g_blocks=[0], e_blocks=[3, 2])
    method, leaves = twins.method.train(training), twins.leaves
    shared = [(list(p[0, 0]), list(p[1, 0])) for p in (*leaves["general"], *leaves["expert"])]
    features = [twins.feature(image, [0, 3, 2], shared) for image in IMAGES]
    assert_equal(method.features(IMAGES), torch.stack(features))
    if training:
        twins.same_loss(TASKS[1], features)


@modes
def test_vq(training: bool) -> None:
    twins = Twins(
        VQPrompt,
        pool_size=4,
        length=2,
        blocks=[0, 2],
        temperature=0.1,
        soft_weight=0.4,
        hard_weight=0.3,
    )
    method, leaves = twins.method.train(training), twins.leaves
    found = [
        slow_vq(twins.query(image), leaves["keys"], leaves["prompts"], 0.1) for image in IMAGES
    ]
    features = [twins.feature(image, [0, 2], found[i][0]) for i, image in enumerate(IMAGES)]
    assert_equal(method.features(IMAGES), torch.stack(features))
    if training:
        pairs = [pair for _, softs, hards in found for pair in zip(softs, hards, strict=True)]
        soft = sum(((soft - hard.detach()) ** 2).mean() for soft, hard in pairs) / len(IMAGES)
        hard = sum(((hard - soft.detach()) ** 2).mean() for soft, hard in pairs) / len(IMAGES)
        twins.same_loss(TASKS[0], features, 0.4 * soft, 0.3 * hard)


@pytest.mark.parametrize("task", TASKS, ids=["first task", "second task"])
@pytest.mark.parametrize("kind", [HiDePrompt, NoRGa])
def test_hide_and_norga_in_training(kind: type[HiDePrompt], task: TaskSpan) -> None:
    twins = Twins(
        kind, total_tasks=2, length=2, blocks=[0, 2], prompt_momentum=0.2, contrastive_weight=0.1
    )
    method, leaves = twins.method.train(), twins.leaves
    method.begin_task(TASKS[0])
    move(method)
    means = []
    if task.index == 1:
        means = list(torch.randn(3, 8, dtype=torch.float64))
        for label, row in enumerate(means):
            method.statistics.record(label, row.unsqueeze(0), seed=0)
        method.begin_task(task)
        assert torch.equal(method.prompts[:, :, 1], method.prompts[:, :, 0])
        move(method)
    twins.copy()
    leaves = twins.leaves
    prompt = leaves["prompts"][:, :, task.index]
    if task.index == 1:
        prompt = 0.8 * prompt + 0.2 * leaves["prompts"][:, :, 0].detach()
    set_gates(twins, kind, learned=task.index == 0)
    features = [
        twins.feature(image, [0, 2], [(list(p[0]), list(p[1])) for p in prompt]) for image in IMAGES
    ]
    assert_equal(method.features(IMAGES), torch.stack(features))
    points = [*means, *features]
    rows = [cross_entropy([(a * b).sum() / 0.8 for b in points], i) for i, a in enumerate(points)]
    twins.same_loss(task, features, 0.1 * mean(rows))


@pytest.mark.parametrize("kind", [HiDePrompt, NoRGa])
def test_hide_and_norga_in_evaluation(kind: type[HiDePrompt]) -> None:
    twins = Twins(kind, total_tasks=3, length=2, blocks=[0, 2])
    method = twins.method.eval()
    for task in TASKS:
        method.begin_task(task)
        for label in task.classes[:-1]:  # the last class of each has no statistics yet
            method.identity.statistics.record(label, torch.randn(2, 8, dtype=torch.float64), seed=0)
    move(method)
    with torch.no_grad():  # so that the images differ in the task that they are taken for
        draw = torch.Generator().manual_seed(10)
        method.identity.classifier[1].weight.copy_(
            torch.randn(CLASSES, 8, generator=draw, dtype=torch.float64)
        )
    twins.copy()
    set_gates(twins, kind, learned=False)
    weights = method.identity.classifier.state_dict()
    tasks = [
        slow_identity(twins.query(image), weights, [0, 1, 3, 4], [0, 0, 0, 1, 1, 1])
        for image in IMAGES
    ]
    assert set(tasks) == {0, 1}, "both tasks are met"
    prompts = [twins.leaves["prompts"][:, :, number] for number in tasks]
    features = [
        twins.feature(image, [0, 2], [(list(p[0]), list(p[1])) for p in prompt])
        for image, prompt in zip(IMAGES, prompts, strict=True)
    ]
    assert_equal(method.features(IMAGES), torch.stack(features))


def set_gates(twins: Twins, kind: type[HiDePrompt], learned: bool) -> None:
    if kind is NoRGa:
        gates = twins.leaves["gates"] if learned else twins.leaves["gates"].detach()
        for block, (inner, outer) in zip([0, 2], gates, strict=True):
            twins.slow.gates[block] = lambda logit, inner=inner, outer=outer: (
                logit + outer * torch.sigmoid(inner * logit)
            )


def move(method: nn.Module) -> None:
    """Every trained parameter a little elsewhere, as training leaves it."""
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(
                    parameter.shape, generator=draw, dtype=parameter.dtype
                )
