"""What a prompted attention keeps and does not keep, and that other ways to run it choose the same
experts.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

from smope.backbones.vit import load_backbone
from smope.experts.attention import as_one_key
from smope.experts.routed import recorded
from smope.methods.base import TaskSpan
from smope.methods.smope import SMoPE
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.routers.base import Routing
from tests.tiny import tiny_backbone

TASK = TaskSpan(0, 0, 2)
LABELS = torch.tensor([0, 1, 0, 1])


def make(depth: int = 7, blocks: list[int] | None = None) -> SMoPE:
    torch.manual_seed(0)
    backbone = tiny_backbone(depth=depth)
    return SMoPE(
        backbone, 4, AdaptiveNoise(3), num_experts=9, blocks=blocks, router_loss_weight=0.1
    ).train()


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def step(method: SMoPE) -> list[Tensor]:
    """The loss of one batch and the experts' gradients."""
    method.zero_grad()
    loss = torch.stack(list(method.losses(images(), LABELS, TASK).values())).sum()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in method.prompt_parameters())]


def test_several_experts_amount_to_one_key() -> None:
    """Its exponential is the sum of theirs, its value their average."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 5, generator=draw, dtype=torch.float64)
    values = torch.randn(3, 5, 4, generator=draw, dtype=torch.float64)
    ids = torch.tensor([4, 0, 2]).expand(2, 3, 3)
    key = as_one_key(Routing(scores, ids, scores.gather(-1, ids)), values, 0.5)
    for image in range(2):
        for head in range(3):
            powers = (scores[image, head, [4, 0, 2]] * 0.5).exp()
            assert key.logit[image, head].exp().item() == pytest.approx(powers.sum().item())
            average = powers @ values[head, [4, 0, 2]] / powers.sum()
            torch.testing.assert_close(key.value[image, head], average)


def test_the_graph_of_a_step_is_let_go() -> None:
    method = make()
    step(method)
    assert len(method.routings) == 6
    assert not any(
        routing.scores.requires_grad or routing.weights.requires_grad for routing in method.routings
    )
    copied = copy.deepcopy(method)
    assert all(torch.equal(a, b) for a, b in zip(step(copied), step(method), strict=True))


def test_recorded_decisions_have_their_graph() -> None:
    method = make()
    wrappers = [block.attn for block in method.backbone.vit.blocks[:6]]
    with recorded(wrappers) as routings:
        method(images())
    method(images())
    assert len(routings) == 6 and all(routing.scores.requires_grad for routing in routings)
    assert all(
        torch.equal(a.scores, b.scores) for a, b in zip(routings, method.routings, strict=True)
    )


def test_recomputing_changes_no_step() -> None:
    method = make(blocks=[1, 3])
    before = step(method)
    method.backbone.recompute = True
    assert all(torch.equal(a, b) for a, b in zip(step(method), before, strict=True))
    copy.deepcopy(method)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_it_takes_the_same_step(backend: str) -> None:
    """aot_eager traces forward and backward pass and needs no compiler; inductor generates code."""
    if backend == "inductor" and shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("inductor needs a C++ compiler")
    method = make(depth=2, blocks=[0])
    before = step(method)
    chosen = method.routings[0].expert_ids
    torch.compiler.reset()
    method.backbone.compile(backend=backend, fullgraph=True)
    after = step(method)
    assert torch.equal(method.routings[0].expert_ids, chosen)
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_compiled_for_evaluation() -> None:
    method = make(depth=2, blocks=[0]).eval()
    with torch.no_grad():
        before = method(images())
        torch.compiler.reset()
        method.backbone.compile(backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(method(images()), before, rtol=1e-4, atol=1e-5)


def real_images(data_root: Path, number: int) -> Tensor:
    files = sorted((data_root / "cifar100_subset" / "test").glob("*/*"))
    if not files:
        pytest.skip("no CIFAR-100 images in the folder with data")
    opened = (
        Image.open(file).convert("RGB").resize((224, 224))
        for file in files[:: len(files) // number][:number]
    )
    return torch.stack(
        [torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255 for image in opened]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_chooses_the_same_experts(dtype: torch.dtype, data_root: Path) -> None:
    """At least 99 % of the choices of float32, on photographs and a trained ViT."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    weights = data_root / "weights" / f"{name}.safetensors"
    if not weights.is_file():
        pytest.skip("no ViT-Ti weights in the folder with data")
    torch.manual_seed(0)
    method = SMoPE(load_backbone(name, str(weights)), 10, AdaptiveNoise(5)).eval()
    given = real_images(data_root, 16)
    chosen = []
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=enabled):
            method(given)
        assert {routing.scores.dtype for routing in method.routings} == {torch.float32}
        chosen.append(torch.stack([routing.expert_ids for routing in method.routings]))
    same = (chosen[0].unsqueeze(-1) == chosen[1].unsqueeze(-2)).any(-1)
    assert same.double().mean() >= 0.99
