"""The backbones of conf/backbone: which weights each name means, that timm builds it, that experts
can join it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import yaml
from timm.models.vision_transformer import Attention

from smope.backbones.files import AUTHORS_FILES, hub_file
from smope.backbones.vit import Backbone, load_backbone
from smope.config.conf_files import choices, conf_dir
from smope.config.config import MISSING
from smope.config.hydra import compose, compose_values
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.experts.bank import PrefixBank
from smope.experts.inject import attach, detach
from smope.routers.topk import TopK

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# name, mean and std, image size, patches, width
NAMED: dict[str, tuple[str, Any, int, int, int]] = {
    "sup21k": ("vit_base_patch16_224.augreg_in21k", (HALF, HALF), 224, 196, 768),
    "sup1k": ("vit_base_patch16_224.augreg2_in21k_ft_in1k", (HALF, HALF), 224, 196, 768),
    "ibot1k": ("vit_base_patch16_224.ibot_in1k", IMAGENET, 224, 196, 768),
    "dino1k": ("vit_base_patch16_224.dino", IMAGENET, 224, 196, 768),
    "mae": ("vit_base_patch16_224.mae", IMAGENET, 224, 196, 768),
    "dinov2": ("vit_base_patch14_dinov2.lvd142m", IMAGENET, 224, 256, 768),
    "clip": ("vit_base_patch16_clip_quickgelu_224.openai", OPENAI, 224, 196, 768),
    "vit_small": ("vit_small_patch16_224.augreg_in21k_ft_in1k", (HALF, HALF), 224, 196, 384),
    "vit_tiny": ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", (HALF, HALF), 224, 196, 192),
}


def composed(choice: str) -> dict[str, Any]:
    group = dict(
        compose(read_overrides([f"backbone={choice}", "backbone.weights=random"])).backbone
    )
    del group["_target_"]
    return group


def build(choice: str) -> Backbone:
    """With two of its blocks, which are all alike."""
    torch.manual_seed(0)
    return load_backbone(**{**composed(choice), "options": {"depth": 2}})


def test_every_name_is_listed_here() -> None:
    assert set(choices("backbone", [conf_dir()])) == {*NAMED, "glyph_vit", "timm"}


@pytest.mark.parametrize("choice", NAMED)
def test_which_weights_a_name_means(choice: str) -> None:
    name, (mean, std), image_size, patches, width = NAMED[choice]
    assert composed(choice)["options"] == {}
    backbone = build(choice)
    assert backbone.identity.name == name
    assert (backbone.identity.mean, backbone.identity.std) == (mean, std)
    assert (backbone.image_size, backbone.vit.patch_embed.num_patches, backbone.embed_dim) == (
        image_size,
        patches,
        width,
    )
    text = (conf_dir() / "backbone" / f"{choice}.yaml").read_text(encoding="utf-8")
    said = {
        key: tuple(yaml.safe_load(value))
        for key, value in re.findall(r"(\w+): null +# own: (\[.*\])", text)
    }
    assert said == {"mean": mean, "std": std}


@pytest.mark.parametrize("choice", NAMED)
def test_experts_join_it(choice: str) -> None:
    backbone = build(choice)
    images = torch.rand(1, 3, backbone.image_size, backbone.image_size)
    with torch.no_grad():
        plain = backbone(images)
        wrappers = attach(backbone.vit, [0, 1], TopK(5), make_bank)
        prompted = backbone(images)
    assert prompted.shape == plain.shape == (1, backbone.embed_dim)
    assert not torch.equal(prompted, plain)
    assert wrappers[0].routing is not None
    detach(backbone.vit)
    with torch.no_grad():
        assert torch.equal(backbone(images), plain)


def make_bank(attention: Attention) -> PrefixBank:
    return PrefixBank(attention.num_heads, 25, attention.head_dim)


def test_clip_has_the_activation_of_its_training() -> None:
    """x·sigmoid(1.702·x), https://github.com/openai/CLIP/blob/main/clip/model.py"""
    x = torch.linspace(-3, 3, 7)
    activation = build("clip").vit.blocks[0].mlp.act
    torch.testing.assert_close(activation(x), x * torch.sigmoid(1.702 * x))


@pytest.mark.parametrize("choice", NAMED)
def test_where_the_weights_come_from(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline with an empty cache: a repository of timm's, or the authors' own file."""
    weights = compose_values(read_overrides([f"backbone={choice}"]))["backbone"]["weights"]
    name = NAMED[choice][0]
    assert weights == (MISSING if name in AUTHORS_FILES else "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    expected = (
        r"is not on the Hub; get .*checkpoint_teacher"
        if name in AUTHORS_FILES
        else r"`hf download timm/vit_"
    )
    with pytest.raises(UserError, match=expected):
        hub_file(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vit_base_patch16_dinov3.lvd1689m",
            r"timm builds a Eva for it; prompt experts need a plain timm Vision",
        ),
        (
            "vit_base_patch16_siglip_224.webli",
            r"timm cannot build it with .* and a CLS token \(Token pooling needs",
        ),
        (
            "swin_tiny_patch4_window7_224.ms_in1k",
            r"prompt experts need a plain timm VisionTransformer with a CLS",
        ),
    ],
)
def test_models_without_what_the_experts_need(name: str, message: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    with pytest.raises(UserError, match=rf"backbone\.name={re.escape(name)}: .*{message}"):
        load_backbone(name)


def test_an_error_of_timm_s_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SigLIP's is in timm 1.0.9."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(
        UserError,
        match=r"timm cannot build it with .* and a CLS token \(AssertionError\); prompt experts",
    ):
        load_backbone("vit_base_patch16_siglip_224.webli")
