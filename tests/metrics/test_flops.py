"""Counting operations: by hand on a tiny ViT, the published number on a ViT-B/16, and PyTorch's
own counter.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from smope.backbones import attention
from smope.backbones.vit import load_backbone
from smope.methods.base import Method, TaskSpan
from smope.methods.finetune import Finetune
from smope.methods.ncm import NearestClassMean
from smope.methods.smope import SMoPE
from smope.metrics.cost import count_flops
from smope.routers.adaptive_noise import AdaptiveNoise
from tests.tiny import frozen, tiny_backbone

FIRST, SECOND = TaskSpan(0, 0, 2), TaskSpan(1, 2, 4)
# tests/tiny.py's ViT: tokens, patches, width, heads, head width, blocks; and experts a head,
# classes
N, P, C, H, D, DEPTH, E, CLASSES = 17, 16, 32, 2, 16, 7, 9, 4
PROMPTED = 6
PLAIN_BLOCK = 2 * N * C * (3 * C + C + 8 * C)  # qkv, proj and the two layers of the MLP
# keys and values of all tokens, the rest of one
CLS_BLOCK = 2 * N * C * 2 * C + 2 * C * (C + C + 8 * C)
PATCHES = 2 * P * C * 3 * 8 * 8
HEAD = 2 * C * CLASSES
EXPERTS = 2 * (2 * H * E * D)  # scores, and the mix of values


class TwoPasses(Finetune):
    """Asks the frozen backbone first, as L2P and its kin do."""

    def features(self, images: Tensor) -> Tensor:
        return super().features(images) + super().features(images)


def tiny_smope(**options: Any) -> SMoPE:
    torch.manual_seed(0)
    return SMoPE(tiny_backbone(**options), CLASSES, AdaptiveNoise(top_k=3), num_experts=E)


def big(kind: type[Method], **arguments: Any) -> Method:
    return kind(
        load_backbone("vit_base_patch16_224.augreg_in21k", weights="random"), 200, **arguments
    )


def test_inference_by_hand() -> None:
    attention, row = 4 * N * C, 4 * C  # both products of a query row over one key: N rows and one
    whole = PATCHES + DEPTH * PLAIN_BLOCK + HEAD + PROMPTED * (attention * (N + 1) + EXPERTS)
    cls = (
        PATCHES
        + (DEPTH - 1) * PLAIN_BLOCK
        + CLS_BLOCK
        + HEAD
        + PROMPTED * (attention * (N + 1) + EXPERTS)
    )
    flops = count_flops(tiny_smope(), FIRST)
    assert flops["without_cls_saving"]["infer_gflops"]["torch"] * 1e9 == pytest.approx(
        whole + attention * N
    )
    assert flops["infer_gflops"]["torch"] * 1e9 == pytest.approx(cls + row * N)
    assert flops["beyond_plain"]["torch"] * 1e9 == pytest.approx(PROMPTED * (attention + EXPERTS))


def test_training_by_hand() -> None:
    """Frozen weights have no gradient: each layer's backward pass costs what its forward pass
    does.
    """
    # an expert's keys and values, and the query and shares they meet
    attention, experts = (
        4 * N * C,
        2 * EXPERTS,
    )
    forward = (DEPTH - 1) * PLAIN_BLOCK + CLS_BLOCK + 2 * HEAD
    forward += PROMPTED * (attention * (N + 1) + EXPERTS) + 4 * C * N
    # Five products in attention's backward pass, where the forward pass has two.
    backward = (
        (DEPTH - 2) * PLAIN_BLOCK
        + CLS_BLOCK
        + (PROMPTED - 1) * (2.5 * attention * (N + 1) + experts)
    )
    backward += 2.5 * 4 * C * N
    # Below the first block's experts nothing learns: no qkv, no query; the extra key's share of the
    # output's gradient.
    backward += 2 * N * C * (C + 8 * C) + 2 * N * C + experts - 2 * H * E * D
    counted = count_flops(tiny_smope(), FIRST)["train_gflops"]["torch"] * 1e9
    assert counted == pytest.approx(PATCHES + forward + backward + HEAD)


def test_the_papers_convention_by_hand() -> None:
    """Layers only: LayerNorms (two a block and a last one) 5 an element, GELUs 1, a bias of the
    patch embedding.
    """
    small = 5 * (2 * DEPTH + 1) * N * C + DEPTH * N * 4 * C + P * C
    whole = PATCHES + DEPTH * PLAIN_BLOCK + HEAD + small
    flops = count_flops(tiny_smope(), FIRST)["without_cls_saving"]
    for phase in ("train_gflops", "infer_gflops"):
        assert flops[phase]["paper_convention"] * 1e9 == pytest.approx(whole)


@pytest.mark.parametrize(("kind", "passes"), [(SMoPE, 1), (TwoPasses, 2)])
def test_a_vit_base_is_what_papers_print(kind: type[Method], passes: int) -> None:
    flops = count_flops(big(kind, **({"router": AdaptiveNoise()} if kind is SMoPE else {})), FIRST)
    for phase in ("train_gflops", "infer_gflops"):
        assert (
            round(flops["without_cls_saving"][phase]["paper_convention"], 2)
            == {1: 33.72, 2: 67.44}[passes]
        )
        assert (
            round(flops["cls_saving"][phase]["paper_convention"], 2) == {1: 2.31, 2: 4.63}[passes]
        )
    assert (
        round(flops["without_cls_saving"]["infer_gflops"]["torch"], 2)
        == {1: 35.13, 2: 70.25}[passes]
    )
    assert round(flops["infer_gflops"]["torch"], 2) == {1: 32.70, 2: 65.39}[passes]
    if kind is SMoPE:
        assert round(flops["train_gflops"]["torch"], 2) == 66.15
        assert 0 < flops["beyond_plain"]["torch"] < 2e-4 * flops["infer_gflops"]["torch"]


def test_it_is_what_pytorchs_counter_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "onednn_computes_products", lambda: True)
    method = tiny_smope().train()
    method.begin_task(FIRST)
    with FlopCounterMode(display=False) as training:
        sum(
            method.losses(
                torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64), FIRST
            ).values()
        ).backward()
    with torch.no_grad(), FlopCounterMode(display=False) as inference:
        method.eval()(torch.rand(1, 3, 32, 32))
    flops = count_flops(method, FIRST)
    assert flops["train_gflops"]["torch"] * 1e9 == pytest.approx(training.get_total_flops())
    assert flops["infer_gflops"]["torch"] * 1e9 == pytest.approx(inference.get_total_flops())


@pytest.mark.parametrize("onednn", [True, False])
def test_no_kernel_changes_the_count(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "onednn_computes_products", lambda: onednn)
    whole, half = (
        count_flops(tiny_smope().to(dtype), FIRST) for dtype in (torch.float32, torch.bfloat16)
    )
    assert whole == half
    assert attention.in_products(torch.empty(1)) == onednn


def test_training_nothing_costs_nothing() -> None:
    flops = count_flops(NearestClassMean(tiny_backbone(), CLASSES), FIRST)
    assert flops["train_gflops"] == {"torch": 0, "paper_convention": 0}
    assert flops["infer_gflops"]["torch"] > 0
    assert flops["beyond_plain"] == {"torch": 0, "paper_convention": 0}


def test_training_the_classifier_alone_adds_its_gradient() -> None:
    flops = count_flops(Finetune(tiny_backbone(), CLASSES), FIRST)
    assert (flops["train_gflops"]["torch"] - flops["infer_gflops"]["torch"]) * 1e9 == pytest.approx(
        HEAD
    )


def test_the_method_and_the_generators_are_left_as_they_were() -> None:
    method = tiny_smope().eval()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    drawn, threads = torch.get_rng_state(), torch.get_num_threads()
    count_flops(method, SECOND)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not method.training
    assert torch.get_num_threads() == threads
    assert not method.backbone.whole_last_block


def test_a_vit_that_is_not_taken_apart_saves_nothing() -> None:
    """A forward pass of its own, which timm's kernel computes, all rows of it."""

    class Odd(VisionTransformer):
        def forward_features(self, x: Tensor) -> Tensor:
            return super().forward_features(x)

    sizes = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": C,
        "depth": DEPTH,
        "num_heads": H,
        "num_classes": 0,
    }
    flops = count_flops(Finetune(frozen(Odd(**sizes)), CLASSES), FIRST)
    whole = PATCHES + DEPTH * (PLAIN_BLOCK + 4 * N * C * N) + HEAD
    assert flops["infer_gflops"]["torch"] * 1e9 == pytest.approx(whole)
    assert flops["cls_saving"]["infer_gflops"] == {"torch": 0, "paper_convention": 0}
