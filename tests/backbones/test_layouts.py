"""Files laid out as their authors publish them: read as timm itself reads them, and with every key
accounted for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from smope.backbones.vit import load_backbone
from smope.errors import UserError
from tests.tiny import shake

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
DINOV2 = "vit_base_patch14_dinov2.lvd142m"
GOOGLE = "vit_base_patch16_224.augreg_in21k"


def state_of(name: str, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, global_pool="token", **{**SMALL, **options})
    return dict(shake(model).state_dict())


def as_openai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole CLIP: timm's ViT as its image tower, and some of the text tower."""
    names = {
        "patch_embed.proj.": "conv1.",
        "norm_pre.": "ln_pre.",
        "blocks.": "transformer.resblocks.",
        ".norm1.": ".ln_1.",
        ".norm2.": ".ln_2.",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj.": "attn.out_proj.",
        "mlp.fc1.": "mlp.c_fc.",
        "mlp.fc2.": "mlp.c_proj.",
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
    }
    whole = {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.weight": torch.ones(32)}
    whole |= {"positional_embedding": torch.zeros(77, 32), "visual.proj": torch.zeros(32, 16)}
    for key, value in state.items():
        name = key.replace("norm.", "ln_post.") if key.startswith("norm.") else key
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        whole[f"visual.{name}"] = (
            value.flatten() if key == "cls_token" else value[0] if key == "pos_embed" else value
        )
    return whole


def as_google(state: dict[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """A Flax checkpoint of the ViT's authors, with the classifier and the layer before it.

    Under `params/` it is one of their later program (Big Vision), which counts the parts of a block
    differently.
    """
    heads, width, later = SMALL["num_heads"], SMALL["embed_dim"], prefix == "params/"
    positions = "pos_embedding" if later else "Transformer/posembed_input/pos_embedding"
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        positions: state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "pre_logits/kernel": torch.zeros(width, width),
        "head/kernel": torch.zeros(width, 10),
        "head/bias": torch.zeros(10),
    }
    for index in range(sum(key.endswith("norm1.weight") for key in state)):
        block, ours = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        for theirs, norm in (
            ("LayerNorm_0", "norm1"),
            ("LayerNorm_1" if later else "LayerNorm_2", "norm2"),
        ):
            arrays[f"{block}/{theirs}/scale"] = state[f"{ours}.{norm}.weight"]
            arrays[f"{block}/{theirs}/bias"] = state[f"{ours}.{norm}.bias"]
        attention = f"{block}/MultiHeadDotProductAttention_{0 if later else 1}"
        for part, weight, bias in zip(
            ("query", "key", "value"),
            state[f"{ours}.attn.qkv.weight"].chunk(3),
            state[f"{ours}.attn.qkv.bias"].chunk(3),
            strict=True,
        ):
            arrays[f"{attention}/{part}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}/{part}/bias"] = bias.reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(
            heads, -1, width
        )
        arrays[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for layer in (0, 1):
            dense = f"{block}/MlpBlock_{0 if later else 3}/Dense_{layer}"
            arrays[f"{dense}/kernel"] = state[f"{ours}.mlp.fc{layer + 1}.weight"].T
            arrays[f"{dense}/bias"] = state[f"{ours}.mlp.fc{layer + 1}.bias"]
    return {prefix + key: value.numpy() for key, value in arrays.items()}


def with_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"head.weight": torch.zeros(7, 32), "head.bias": torch.zeros(7)}


def write_torch(content: Any, path: Path) -> None:
    torch.save(content, path)


def write_npz(content: Any, path: Path) -> None:
    numpy.savez(path, **content)


# name, layout, writer, file name
PUBLISHED: dict[
    str, tuple[str, Callable[[dict[str, Tensor]], Any], Callable[[Any, Path], None], str]
] = {
    "sup21k on the Hub": (GOOGLE, with_head, save_file, "model.safetensors"),
    "sup21k of Google": (GOOGLE, as_google, write_npz, "B_16.npz"),
    "with its optimizer's": (
        GOOGLE,
        lambda state: as_google(state, "opt/target/"),
        write_npz,
        "B_16.npz",
    ),
    "Big Vision's": (GOOGLE, lambda state: as_google(state, "params/"), write_npz, "B_16.npz"),
    "dino": ("vit_base_patch16_224.dino", dict, write_torch, "dino_vitbase16_pretrain.pth"),
    "mae": (
        "vit_base_patch16_224.mae",
        lambda state: {"model": state},
        write_torch,
        "mae_pretrain_vit_base.pth",
    ),
    "dinov2 on the Hub": (DINOV2, dict, save_file, "model.safetensors"),
    "dinov2 of its authors": (
        DINOV2,
        lambda state: state | {"mask_token": torch.zeros(1, 32)},
        write_torch,
        "dinov2_vitb14_pretrain.pth",
    ),
    "clip on the Hub": (CLIP, as_openai, write_torch, "pytorch_model.bin"),
    "clip of open_clip": (CLIP, as_openai, save_file, "open_clip_model.safetensors"),
}


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_files_as_timm_reads_them(layout: str, size: int, tmp_path: Path) -> None:
    name, lay_out, write, filename = PUBLISHED[layout]
    state = state_of(name)
    write(lay_out(state), path := tmp_path / filename)
    backbone = load_backbone(name, str(path), "none", image_size=size, options=SMALL)
    overlay = {"file": str(path), "custom_load": path.suffix == ".npz"}
    options = {**SMALL, "img_size": size, "num_classes": 0, "global_pool": "token"}
    theirs = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, **options
    ).eval()
    ours, expected = backbone.vit.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys() == state.keys()
    for key, value in expected.items():
        assert torch.equal(ours[key], value), key
        assert size != 32 or torch.equal(value, state[key]), key
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(backbone.vit(images), theirs(images))
        torch.testing.assert_close(backbone(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_ibot_of_its_authors(tmp_path: Path) -> None:
    """Their layout is DINO's, inside `state_dict`; its statistics are ImageNet's."""
    state = state_of("vit_base_patch16_224")
    torch.save({"state_dict": state}, tmp_path / "checkpoint_teacher.pth")
    backbone = load_backbone("vit_base_patch16_224.ibot_in1k", str(tmp_path), options=SMALL)
    assert all(torch.equal(value, state[key]) for key, value in backbone.vit.state_dict().items())
    assert backbone.identity.mean == (0.485, 0.456, 0.406)
    assert backbone.identity.std == (0.229, 0.224, 0.225)
    assert backbone.identity.name == "vit_base_patch16_224.ibot_in1k"


def refuse(name: str, path: Path, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match):
        load_backbone(name, str(path), "none", options={**SMALL, **options})


def google_file(folder: Path, **changes: Any) -> Path:
    arrays = as_google(state_of(GOOGLE)) | changes
    write_npz(
        {key: value for key, value in arrays.items() if value is not None}, folder / "vit.npz"
    )
    return folder / "vit.npz"


def test_google_deeper_or_shallower(tmp_path: Path) -> None:
    path = google_file(tmp_path)
    refuse(
        GOOGLE,
        path,
        r"vit\.npz: has unknown Transformer/encoderblock_1/\S+, .* and 13 more",
        depth=1,
    )
    refuse(GOOGLE, path, r"vit\.npz: lacks blocks\.2\.norm1\.weight, .* and 9 more", depth=3)


def test_google_of_another_width_or_patch(tmp_path: Path) -> None:
    path = google_file(tmp_path)
    refuse(
        GOOGLE,
        path,
        r"vit\.npz: has other shapes for patch_embed\.proj\.weight; .*\(48 wide",
        embed_dim=48,
    )
    refuse(GOOGLE, path, r"vit\.npz: has other shapes for patch_embed\.proj\.weight", patch_size=16)


def test_google_with_a_tensor_too_few_or_too_many(tmp_path: Path) -> None:
    lacking = google_file(tmp_path, **{"Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias": None})
    refuse(GOOGLE, lacking, r"vit\.npz: lacks blocks\.1\.mlp\.fc2\.bias;")
    more = google_file(tmp_path, registers=numpy.zeros((1, 4, 32)))
    refuse(GOOGLE, more, r"vit\.npz: has unknown registers;")


def test_an_npz_file_of_something_else(tmp_path: Path) -> None:
    numpy.savez(tmp_path / "digits.npz", images=numpy.zeros((3, 8, 8)))
    refuse(GOOGLE, tmp_path / "digits.npz", r"digits\.npz: not a readable weight file")


def test_an_npz_file_is_not_unpickled(tmp_path: Path) -> None:
    path = google_file(tmp_path, cls=numpy.array([{"a": 1}], dtype=object))
    refuse(GOOGLE, path, r"vit\.npz: not a readable weight file \(Object arrays cannot be loaded")


def test_clip_of_another_depth(tmp_path: Path) -> None:
    torch.save(as_openai(state_of(CLIP)), path := tmp_path / "pytorch_model.bin")
    refuse(CLIP, path, r"has unknown blocks\.1\.", depth=1)
    refuse(CLIP, path, r"lacks blocks\.2\.", depth=3)
    refuse("vit_base_patch16_224", path, r"lacks patch_embed\.proj\.bias;")
    torch.save({"visual.class_embedding": torch.zeros(32)}, path)
    refuse(CLIP, path, r"lacks pos_embed, patch_embed\.proj\.weight, ")


def test_patches_of_another_size_are_not_stretched(tmp_path: Path) -> None:
    """timm would resample them where the number of patches differs as well."""
    save_file(state_of(DINOV2), path := tmp_path / "model.safetensors")
    refuse(
        DINOV2, path, r"has other shapes for patch_embed\.proj\.weight", patch_size=16, img_size=32
    )
