"""`backbone.options`: what timm could not build, or would build wrongly, is refused in one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from smope.backbones.options import FIXED, RULES, check_options
from smope.backbones.vit import load_backbone
from smope.errors import UserError

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"img_size": [64, 96]}, r"img_size must be one whole number of pixels, for images are square"),
    ({"img_size": 0}, r"img_size must be one whole number"),
    ({"img_size": -32}, r"img_size must be one whole number"),
    ({"img_size": "64"}, r"img_size must be one whole number"),
    ({"img_size": 36}, r"img_size must be a multiple of the patch size 8, got 36; .*img_size=32"),
    ({"img_size": 4}, r"img_size must be a multiple of the patch size 8, got 4"),
    ({"img_size": [32]}, r"img_size must be one whole number"),
    ({"patch_size": 0}, r"patch_size must be one whole number .* got 0; write .*patch_size=16"),
    ({"patch_size": [16, 8]}, r"patch_size must be one whole number .* got \[16, 8\]"),
    ({"patch_size": 7.5}, r"patch_size must be one whole number"),
    ({"in_chans": 1}, r"in_chans must be 3, since images are read in colour, got 1"),
    ({"class_token": False}, r"class_token must be true, since features are those of the CLS"),
    ({"global_pool": "avg"}, r"global_pool must be token, since features are those of the CLS"),
    ({"global_pool": "map"}, r"global_pool must be token"),
    ({"dynamic_img_size": True}, r"dynamic_img_size must be false, since all images have the size"),
    ({"depth": 0}, r"depth must be a whole number, at least 1, got 0"),
    ({"depth": -1}, r"depth must be a whole number, at least 1"),
    ({"depth": True}, r"depth must be a whole number, at least 1, got true"),
    ({"num_heads": 0}, r"num_heads must be a whole number, at least 1"),
    ({"num_heads": 5}, r"embed_dim must be a multiple of num_heads=5, got 32; .*embed_dim=30"),
    ({"embed_dim": 0}, r"embed_dim must be a whole number, at least 1"),
    ({"embed_dim": "wide"}, r"embed_dim must be a whole number, at least 1, got wide"),
    ({"mlp_ratio": 0}, r"mlp_ratio must be a number above 0"),
    ({"drop_path_rate": 1.5}, r"drop_path_rate must be a number from 0 to below 1, got 1\.5"),
    ({"qkv_bias": "yes"}, r"qkv_bias must be true or false, got yes"),
    ({"reg_tokens": -1}, r"reg_tokens must be a whole number, at least 0"),
    ({"num_classes": 10}, r"num_classes cannot be set; leave it out: the classifier follows"),
    ({"pretrained": True}, r"pretrained cannot be set; leave it out: write backbone\.weights=hub"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=str)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^backbone\.options\.{message}") as error:
        load_backbone("vit_tiny_patch16_224", "random", "none", options={**SMALL, **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "word", ["options.img_size=[64,96]", "options.patch_size=[4,2]", "options.depth=0"]
)
def test_before_anything_is_built(word: str, mistake: Callable[..., str]) -> None:
    answer = mistake("train", "stream=glyphs", "backbone=glyph_vit", f"+backbone.{word}")
    assert word.partition("=")[0] in answer


@pytest.mark.parametrize(
    ("option", "hint"),
    [("embed_dims", "did you mean embed_dim?"), ("head", "did you mean"), ("nonsense", "it has ")],
)
def test_an_unknown_option_is_named(option: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        load_backbone("vit_tiny_patch16_224", "random", "none", options={**SMALL, option: 1})
    assert str(error.value).startswith(
        f"backbone.options.{option}: vit_tiny_patch16_224 has no such option"
    )
    assert hint in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"img_size": [64, 64]},
        {"patch_size": [4, 4]},
        {"depth": None},
        {"in_chans": 3, "class_token": True},
        {"reg_tokens": 2, "no_embed_class": True},
        {"init_values": 1e-5},
        {"num_heads": 4, "qkv_bias": False},
        {"drop_path_rate": 0.1, "mlp_ratio": 2},
    ],
    ids=str,
)
def test_right_options_are_taken(options: dict[str, Any]) -> None:
    small = {**SMALL, **options, "depth": options.get("depth", 1) or 12}
    backbone = load_backbone("vit_tiny_patch16_224", "random", "none", options=small)
    side = backbone.image_size
    assert backbone(torch.rand(2, 3, side, side)).shape == (2, 32)


def test_the_options_are_timm_s() -> None:
    """Every option that is checked exists in timm, but for what some releases lack."""
    newer = {"attn_head_dim", "scale_attn_norm", "scale_mlp_norm", "features_only"}
    assert {*RULES, *FIXED} - newer <= set(inspect.signature(VisionTransformer).parameters)


def test_null_keeps_timm_s_own_value() -> None:
    check_options(dict.fromkeys([*RULES, *FIXED]))


def test_a_model_that_is_not_square_by_itself() -> None:
    """Where timm's own name says so, and not an option."""
    from smope.backbones.vit import check_square

    vit = VisionTransformer(img_size=(32, 64), patch_size=8, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(UserError, match=r"backbone\.name=oblong: its img_size is 32 x 64, and"):
        check_square("oblong", vit)
