"""Experts go into any plain timm ViT with a CLS token, come out again without a trace, and other
models are refused.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from smope.backbones.vit import load_backbone
from smope.errors import UserError
from smope.experts.attention import PromptedAttention
from smope.experts.bank import PrefixBank
from smope.experts.inject import attach, detach
from smope.methods.smope import SMoPE
from smope.routers.topk import TopK
from tests.tiny import frozen, shake, tiny_vit


def make_bank(attention: Attention) -> PrefixBank:
    return PrefixBank(attention.num_heads, 7, attention.head_dim)


def attach_to(vit: VisionTransformer, *blocks: int) -> list[PromptedAttention]:
    return attach(vit, blocks, TopK(3), make_bank)


@pytest.mark.parametrize(
    ("name", "image_size", "options"),
    [
        ("vit_tiny_patch16_224", None, {}),
        ("vit_small_patch16_224", None, {}),
        ("vit_base_patch16_224", 64, {}),
        ("vit_tiny_patch16_224", 64, {"qk_norm": True}),
        ("vit_small_patch14_reg4_dinov2", 56, {}),
        ("deit_tiny_distilled_patch16_224", 64, {}),
    ],
    ids=str,
)
def test_works_on(name: str, image_size: int | None, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(name, "random", "none", image_size=image_size, options=options)
    shake(backbone.vit)
    size = backbone.image_size
    assert size == (image_size or 224)
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        plain = backbone(images)
    wrappers = attach_to(backbone.vit, 0, 3)
    assert [wrapper.bank.keys.shape for wrapper in wrappers] == [
        (wrappers[0].attention.num_heads, 7, 64)
    ] * 2
    prompted = backbone(images)
    assert prompted.shape == plain.shape == (1, backbone.embed_dim)
    assert (prompted - plain).abs().max() > 1e-3
    prompted.square().sum().backward()
    for wrapper in wrappers:
        assert wrapper.bank.keys.grad.abs().max() > 0
        chosen = wrapper.routing.expert_ids[0].sort(-1).values
        for head, ids in enumerate(chosen.tolist()):
            assert wrapper.bank.values.grad[head].abs().sum(-1).nonzero().flatten().tolist() == ids
    own = {id(parameter) for wrapper in wrappers for parameter in wrapper.bank.parameters()}
    assert all(
        parameter.grad is None for parameter in backbone.parameters() if id(parameter) not in own
    )
    detach(backbone.vit)
    with torch.no_grad():
        assert torch.equal(backbone(images), plain)


@pytest.mark.parametrize("blocks", [(3, 4), (6,), (5, 0), range(7)], ids=str)
def test_any_set_of_blocks(blocks: Any) -> None:
    vit = tiny_vit()
    before = [block.attn for block in vit.blocks]
    keys = list(vit.state_dict())
    wrappers = attach_to(vit, *blocks)
    assert [wrapper.attention for wrapper in wrappers] == [before[block] for block in blocks]
    assert [
        i for i, block in enumerate(vit.blocks) if isinstance(block.attn, PromptedAttention)
    ] == sorted(blocks)
    detach(vit)
    assert [block.attn for block in vit.blocks] == before
    assert list(vit.state_dict()) == keys


def test_each_block_has_a_router_of_its_own() -> None:
    router = TopK(3)
    first, second = attach(tiny_vit(), [0, 1], router, make_bank)
    assert len({id(first.router), id(second.router), id(router)}) == 3


@pytest.mark.parametrize("blocks", [[0, 7], [-1], [100]], ids=str)
def test_blocks_beyond_the_depth(blocks: list[int]) -> None:
    with pytest.raises(
        UserError, match=r"method\.blocks must be different numbers in 0\.\.6 .*7 blocks.*got \["
    ):
        attach_to(tiny_vit(), *blocks)


def test_a_block_named_twice() -> None:
    with pytest.raises(UserError, match=r"method\.blocks must be different numbers .*got \[2, 2\]"):
        attach_to(tiny_vit(), 2, 2)


def test_a_block_wrapped_already_and_nothing_half_done() -> None:
    vit = tiny_vit()
    attach_to(vit, 2)
    with pytest.raises(UserError, match=r"the attention of block 2 is a PromptedAttention"):
        attach_to(vit, 1, 2)
    assert [
        i for i, block in enumerate(vit.blocks) if isinstance(block.attn, PromptedAttention)
    ] == [2]


class OtherAttention(Attention):
    """A subclass may compute anything."""


@pytest.mark.parametrize("kind", ["subclass", "foreign"])
def test_attention_that_is_not_plain(kind: str) -> None:
    vit = tiny_vit()
    vit.blocks[1].attn = OtherAttention(32, 2) if kind == "subclass" else nn.Identity()
    with pytest.raises(
        UserError, match=r"block 1 is a (OtherAttention|Identity); prompts need timm"
    ):
        attach_to(vit, 0, 1)
    assert not isinstance(vit.blocks[0].attn, PromptedAttention)


def test_blocks_with_parallel_attentions() -> None:
    backbone = load_backbone(
        "vit_small_patch16_18x2_224", "random", "none", image_size=32, options={"depth": 2}
    )
    with pytest.raises(UserError, match=r"block 0 is a ParallelThingsBlock; prompts need"):
        attach_to(backbone.vit, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vit_small_patch16_rope_224",
            r"vit_small_patch16_rope_224: timm builds a Eva .*plain timm VisionTransformer",
        ),
        (
            "vit_base_patch16_siglip_224",
            r"vit_base_patch16_siglip_224: .*with a CLS token, such as vit_base_patch16",
        ),
        ("resnet18", r"resnet18: timm cannot build it .*with a CLS token, such as"),
        ("vit_tinny_patch16_224", r"vit_tinny_patch16_224: timm has no such model"),
        ("vit_tiny_patch16_22", r"no such model; close: vit_tiny_patch16_224"),
    ],
)
def test_models_that_are_refused(name: str, message: str) -> None:
    if "rope" in name and not timm.is_model(name):
        pytest.skip("this timm has no such model")
    with pytest.raises(UserError, match=message):
        load_backbone(name, "random", "none")


def test_a_vit_without_cls_token() -> None:
    options = {"class_token": False, "global_pool": "avg"}
    with pytest.raises(UserError, match=r"class_token must be true, since features are those"):
        load_backbone("vit_tiny_patch16_224", "random", "none", image_size=32, options=options)


def test_masks_are_refused() -> None:
    (wrapper,) = attach_to(tiny_vit(), 0)
    tokens = torch.randn(1, 17, 32)
    with pytest.raises(UserError, match="attn_mask"):
        wrapper(tokens, attn_mask=torch.zeros(17, 17))
    with pytest.raises(UserError, match="is_causal"):
        wrapper(tokens, is_causal=True)
    assert wrapper(tokens, attn_mask=None, is_causal=False).shape == tokens.shape


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True}, {"attn_head_dim": 8}, {"scale_norm": True}, {"gated": True}]
)
def test_experts_without_weight_change_nothing(options: dict[str, Any]) -> None:
    """Experts that score far below every token get no attention: what is left is timm's own
    attention, all of it.
    """
    if missing := set(options) - set(inspect.signature(Attention).parameters):
        pytest.skip(f"this timm has no {missing}")
    torch.manual_seed(0)
    attention = Attention(32, 2, qkv_bias=True, norm_layer=nn.LayerNorm, **options).double()
    tokens = torch.randn(1, 17, 32, dtype=torch.float64)
    wrapper = PromptedAttention(attention, make_bank(attention), TopK(3)).double()
    queries: list[Tensor] = []
    wrapper.router.register_forward_hook(
        lambda _module, inputs, _output: queries.append(inputs[0][0])
    )
    assert not torch.allclose(wrapper(tokens), attention(tokens))
    with torch.no_grad():
        wrapper.bank.keys.copy_(-1e9 * queries[0].unsqueeze(1).expand_as(wrapper.bank.keys))
    torch.testing.assert_close(wrapper(tokens), attention(tokens), rtol=1e-12, atol=1e-12)


def test_smope_refuses_more_chosen_than_there_are() -> None:
    with pytest.raises(
        UserError,
        match=r"router\.top_k must be in 1\.\.method\.num_experts=4, got 5; lower it or add",
    ):
        SMoPE(frozen(tiny_vit()), 4, TopK(5), num_experts=4)
