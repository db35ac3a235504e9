"""The forward pass that computes the CLS row alone in the last block gives what timm's whole one
gives.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from smope.backbones import attention
from smope.backbones.forward import cls_features, run_block, run_cls_row, takes_apart
from smope.backbones.vit import load_backbone
from smope.experts.bank import PrefixBank
from smope.experts.inject import attach
from smope.routers.topk import TopK
from tests.tiny import frozen, shake, tiny_vit

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no qkv bias": {"qkv_bias": False},
    "qk_norm": {"qk_norm": True},
    "layer scale": {"init_values": 0.5},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "registers with positions": {"reg_tokens": 2},
    "norm in front": {"pre_norm": True},
    "norm behind": {"final_norm": False},
    "gated MLP": {"mlp_layer": SwiGLUPacked},
    "dropout rates": {"proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5},
    "any size": {"dynamic_img_size": True},
    "one block": {"depth": 1},
    "normed attention": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "norm after": {"block_fn": ResPostBlock, "init_values": 0.5},
    "parallel": {"block_fn": ParallelScalingBlock},
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
kinds = pytest.mark.parametrize("kind", KINDS)


def vit_of(kind: str, dtype: torch.dtype = torch.float64) -> VisionTransformer:
    options = {"qkv_bias": True, **KINDS[kind]}
    if missing := set(options) - set(inspect.signature(VisionTransformer).parameters):
        pytest.skip(f"this timm has no {missing}")
    return tiny_vit(**options).to(dtype).eval().requires_grad_(False)


def pixels(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=dtype)


def gap(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def prompted(vit: VisionTransformer, *blocks: int) -> list[PrefixBank]:
    """Experts in `blocks`, of the ViT's own precision, the same for every ViT."""
    torch.manual_seed(2)
    dtype = next(vit.parameters()).dtype
    wrappers = attach(
        vit, blocks, TopK(3), lambda a: PrefixBank(a.num_heads, 7, a.head_dim).to(dtype)
    )
    return [wrapper.bank for wrapper in wrappers]


@pytest.fixture(autouse=True, params=["products", "kernel"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to attend that a CPU may take, whatever this one would."""
    monkeypatch.setattr(attention, "onednn_computes_products", lambda: request.param == "products")
    return request.param


@kinds
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_timm_s_forward_pass(kind: str, dtype: torch.dtype) -> None:
    vit, given = vit_of(kind, dtype), pixels(dtype).requires_grad_()
    ours, theirs = cls_features(vit, given), vit.forward_features(given)[:, 0]
    assert gap(ours, theirs) <= 3 * TOLERANCE[dtype], "the rounding of seven blocks"
    direction = torch.randn_like(theirs)
    (mine,), (its,) = (torch.autograd.grad(out, given, direction) for out in (ours, theirs))
    assert gap(mine, its) <= 10 * TOLERANCE[dtype]


@kinds
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("run", [run_block, run_cls_row])
def test_a_block_equals_timm_s(run: Any, kind: str, dtype: torch.dtype) -> None:
    block = vit_of(kind, dtype).blocks[0]
    x = torch.randn(
        2, 17, 32, generator=torch.Generator().manual_seed(3), dtype=dtype, requires_grad=True
    )
    ours = run(block, x)
    theirs = block(x)[:, : ours.shape[1]]
    assert ours.shape[1] == (1 if run is run_cls_row else 17)
    assert gap(ours, theirs) <= TOLERANCE[dtype]
    direction = torch.randn_like(theirs)
    (mine,), (its,) = (torch.autograd.grad(out, x, direction) for out in (ours, theirs))
    assert gap(mine, its) <= TOLERANCE[dtype]


@pytest.mark.parametrize("blocks", [(0, 1), (5, 6), (6,)], ids=str)
def test_equals_timm_s_forward_pass_with_experts(blocks: tuple[int, ...]) -> None:
    """In the last block too: its experts are chosen by the mean query of all tokens."""
    vit = vit_of("plain")
    banks, given = prompted(vit, *blocks), pixels()
    results = []
    for forward in (cls_features, lambda vit, x: vit.forward_features(x)[:, 0]):
        out = forward(vit, given)
        out.square().sum().backward()
        results.append((out, [p.grad.clone() for bank in banks for p in bank.parameters()]))
        vit.zero_grad()
    (ours, mine), (theirs, its) = results
    assert gap(ours, theirs) <= 1e-12
    assert all(gap(a, b) <= 1e-11 for a, b in zip(mine, its, strict=True))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 64),
        ("vit_base_patch16_clip_224", 64),
        ("vit_small_patch14_reg4_dinov2", 56),
        ("deit_tiny_distilled_patch16_224", 64),
        ("deit3_small_patch16_224", 64),
    ],
)
def test_equals_timm_s_forward_pass_on_known_models(name: str, size: int) -> None:
    torch.manual_seed(0)
    vit = shake(
        load_backbone(name, "random", "none", image_size=size, options={"depth": 3}).vit
    ).double()
    given = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        assert gap(cls_features(vit, given), vit.forward_features(given)[:, 0]) <= 1e-11
    assert takes_apart(vit.blocks[-1])


def test_the_last_block_computes_one_row() -> None:
    """Keys and values of all tokens; query, projection and MLP of one.

    The other blocks count as they always did.
    """
    vit = vit_of("plain", torch.float32)
    tokens, width = vit.pos_embed.shape[1], vit.embed_dim
    x = torch.randn(1, tokens, width)
    counts = []
    for run in (run_cls_row, run_block):
        # not every torch counts kernels
        with (
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            run(vit.blocks[0], x)
        counts.append(counter.get_total_flops())
    attention = 2 * 2 * tokens * width
    assert counts[0] == 2 * width**2 * (2 * tokens + 1 + 1 + 8) + attention
    assert counts[1] == 2 * width**2 * 12 * tokens + tokens * attention


@pytest.mark.parametrize("kind", ["norm after", "parallel"])
def test_blocks_of_another_kind_are_called_as_they_are(kind: str) -> None:
    vit = vit_of(kind)
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    assert not takes_apart(vit.blocks[-1])
    assert torch.equal(run_cls_row(vit.blocks[-1], x), vit.blocks[-1](x)[:, :1])


class OtherBlock(Block):
    pass


@pytest.mark.parametrize(
    "change", ["subclass", "part of the block", "part of the attention", "hook", "inner hook"]
)
def test_what_is_not_known_is_not_taken_apart(change: str) -> None:
    block = vit_of("plain").blocks[0]
    assert takes_apart(block)
    if change == "subclass":
        block.__class__ = OtherBlock
    elif change == "part of the block":
        block.extra_norm = nn.Identity()
    elif change == "part of the attention":
        block.attn.rope = nn.Identity()
    else:
        (block.attn if change == "inner hook" else block).register_forward_hook(lambda *_: None)
    assert not takes_apart(block)


def test_a_hook_sees_all_tokens() -> None:
    vit, seen = vit_of("plain"), []
    vit.blocks[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    cls_features(vit, pixels())
    assert seen == [(3, 17, 32)]


class OwnForward(VisionTransformer):
    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        return 2 * super().forward_features(x)


def test_a_model_with_a_forward_pass_of_its_own() -> None:
    vit = vit_of("plain")
    whole = vit.forward_features(pixels())[:, 0]
    vit.__class__ = OwnForward
    assert torch.equal(cls_features(vit, pixels()), 2 * whole)


def kept_bytes(run: Any) -> int:
    """Bytes that run() keeps for its backward pass, each storage once, parameters left out."""
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    alive = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        alive.append(run())
    return sum(storages.values())


def test_keeps_less_than_timm() -> None:
    plain = vit_of("plain", torch.float32)
    given = pixels(torch.float32).requires_grad_()
    theirs = kept_bytes(lambda: plain.forward_features(given)[:, 0])
    ours = copy.deepcopy(plain)
    prompted(ours, 0, 1, 2)
    assert kept_bytes(lambda: cls_features(ours, given.detach())) < 0.9 * theirs


def test_recompute_keeps_little_and_changes_nothing() -> None:
    vit = vit_of("plain")
    banks, given = prompted(vit, 1, 4), pixels()
    gradients, sizes = [], []
    for recompute in (False, True):
        sizes.append(
            kept_bytes(lambda recompute=recompute: cls_features(vit, given, recompute=recompute))
        )
        cls_features(vit, given, recompute=recompute).square().sum().backward()
        gradients.append([p.grad.clone() for bank in banks for p in bank.parameters()])
        vit.zero_grad()
    assert sizes[1] < 0.4 * sizes[0]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_backbone_is_told_to_recompute() -> None:
    backbone = frozen(tiny_vit())
    prompted(backbone.vit, 0)
    whole = kept_bytes(lambda: backbone(pixels(torch.float32)))
    backbone.recompute = True
    assert kept_bytes(lambda: backbone(pixels(torch.float32))) < 0.5 * whole
