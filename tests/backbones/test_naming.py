"""One small ViT under the names of many programs: every file gives the same features, or its error
says what is wrong.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from smope.backbones.vit import Backbone, load_backbone
from smope.errors import UserError
from tests.tiny import tiny_vit

from .test_layouts import as_openai

State = dict[str, Tensor]
SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
TRANSFORMERS = {
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "blocks.": "encoder.layer.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.q.": ".attention.attention.query.",
    ".attn.k.": ".attention.attention.key.",
    ".attn.v.": ".attention.attention.value.",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
    "norm.": "layernorm.",
}
DINOV2 = TRANSFORMERS | {".norm1.": ".norm1.", ".norm2.": ".norm2."}
DINOV2 |= {".mlp.fc1.": ".mlp.fc1.", ".mlp.fc2.": ".mlp.fc2."}
TRANSFORMERS_CLIP = {
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding.weight",
    "blocks.": "encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.q.": ".self_attn.q_proj.",
    ".attn.k.": ".self_attn.k_proj.",
    ".attn.v.": ".self_attn.v_proj.",
    ".attn.proj.": ".self_attn.out_proj.",
    "norm.": "post_layernorm.",
}
TORCHVISION = {
    "patch_embed.proj.": "conv_proj.",
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "blocks.": "encoder.layers.encoder_layer_",
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    ".attn.qkv.": ".self_attention.in_proj_",
    ".attn.proj.": ".self_attention.out_proj.",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.3.",
    "norm.": "encoder.ln.",
}
MMPRETRAIN = {
    "patch_embed.proj.": "patch_embed.projection.",
    "blocks.": "layers.",
    ".norm1.": ".ln1.",
    ".norm2.": ".ln2.",
    ".mlp.fc1.": ".ffn.layers.0.0.",
    ".mlp.fc2.": ".ffn.layers.1.",
    "norm.": "ln1.",
}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """Another network of the same sizes."""
    return {key: value + 1 for key, value in state.items()}


def zeros(*names: str) -> State:
    return {name: torch.zeros(3, 3) for name in names}


def apart(state: State) -> State:
    """Query, key and value as tensors of their own."""
    result: State = {}
    for key, value in state.items():
        if ".attn.qkv." in key:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                result[key.replace(".qkv.", f".{part}.")] = rows.clone()
        else:
            result[key] = value
    return result


def renamed(state: State, names: dict[str, str]) -> State:
    """As `names` says; those without a dot in front replace the beginning of a name."""
    result: State = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            if ours.startswith("."):
                key = key.replace(ours, theirs)
            elif key.startswith(ours):
                key = theirs + key.removeprefix(ours)
        result[key] = value
    return result


def transformers(state: State) -> State:
    return renamed(apart(state), TRANSFORMERS)


def peft(state: State, adapters: bool = False) -> State:
    """LoRA on the qkv projections, merged or not."""
    result: State = {}
    for key, value in prefixed(state, "base_model.model.").items():
        result[key.replace(".qkv.", ".qkv.base_layer.")] = value
        if adapters and key.endswith("qkv.weight"):
            result |= zeros(key.replace(".weight", ".lora_A.default.weight"))
    return result


VARIANTS: dict[str, Callable[[State], object]] = {
    # wrappers of torch, Lightning, open_clip and loops of one's own
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "torch.compile in parallel": lambda s: prefixed(s, "module._orig_mod."),
    "compiled blocks": lambda s: renamed(
        s, {".norm1.": "._orig_mod.norm1.", ".attn.": "._orig_mod.attn."}
    ),
    "FSDP": lambda s: prefixed(s, "_fsdp_wrapped_module."),
    "DDP": lambda s: prefixed(s, "module."),
    "DeepSpeed": lambda s: {"module": s, "optimizer": {"state": s}},
    "Lightning": lambda s: {
        "state_dict": prefixed(s, "model.") | zeros("criterion.weight", "model.head.weight"),
        "optimizer_states": [{"state": {0: s}}],
        "pytorch-lightning_version": "2.5",
    },
    "Lightning with a backbone": lambda s: {
        "state_dict": prefixed(s, "model.backbone.") | zeros("model.classifier.weight")
    },
    "net": lambda s: prefixed(s, "net."),
    "a dictionary net": lambda s: {"net": s, "epoch": 3, "acc": 0.5},
    "encoder": lambda s: prefixed(s, "encoder."),
    "a dictionary of an unknown name": lambda s: {"my_vit": s, "optim": {"exp_avg": s}},
    "open_clip": lambda s: (
        prefixed(s, "visual.trunk.")
        | zeros("visual.head.proj.weight", "text.transformer.weight", "logit_scale")
    ),
    "weights of lora merged by peft": peft,
    "peft with a trained head": lambda s: (
        peft(s)
        | zeros(
            "base_model.model.head.original_module.weight",
            "base_model.model.head.modules_to_save.default.weight",
        )
    ),
    # several networks in one file
    "MoCo": lambda s: {
        "state_dict": prefixed(s, "module.base_encoder.")
        | prefixed(other(s), "module.momentum_encoder.")
        | zeros("module.base_encoder.head.0.weight", "module.predictor.0.weight")
    },
    "MoCo without its wrapper": lambda s: prefixed(s, "base_encoder."),
    "MoCo of two queues": lambda s: (
        prefixed(s, "encoder_q.") | prefixed(other(s), "encoder_k.") | zeros("queue", "queue_ptr")
    ),
    "solo-learn": lambda s: (
        prefixed(s, "backbone.") | prefixed(other(s), "momentum_backbone.") | zeros("projector.0")
    ),
    "DINO in one dictionary": lambda s: (
        prefixed(other(s), "student.backbone.") | prefixed(s, "teacher.backbone.")
    ),
    "DINO": lambda s: {
        "student": prefixed(other(s), "module.backbone."),
        "teacher": prefixed(s, "backbone.") | zeros("head.mlp.0.weight"),
        "dino_loss": zeros("center"),
    },
    "DINOv2 in chunks": lambda s: {
        "teacher": renamed(prefixed(s, "backbone."), {".blocks.": ".blocks.0."})
        | zeros("dino_head.last_layer.weight", "backbone.mask_token")
    },
    "an average": lambda s: {"model": other(s), "ema": s},
    "an average in a dictionary": lambda s: {"ema": {"shadow": s, "decay": 0.9}, "model": other(s)},
    "an average of Lightning": lambda s: prefixed(other(s), "model.") | prefixed(s, "ema_model."),
    "an average of torch": lambda s: (
        prefixed(s, "module.") | {"n_averaged": torch.tensor(3, dtype=torch.int64)}
    ),
    "another network of other sizes": lambda s: (
        prefixed(s, "model.") | prefixed({k: v[..., :8] for k, v in s.items()}, "distilled.")
    ),
    # tensors that the feature does not read
    "a decoder": lambda s: {
        "model": s
        | zeros("mask_token", "decoder_pos_embed", "decoder_embed.weight")
        | zeros("decoder_blocks.0.norm1.weight", "decoder_norm.weight", "decoder_pred.bias")
    },
    "a layer before the classifier": lambda s: (
        s | zeros("pre_logits.fc.weight", "pre_logits.fc.bias", "head.weight")
    ),
    "a projection": lambda s: (
        s | zeros("projector.0.weight", "projection_head.2.weight", "fc.bias")
    ),
    # other names
    "ViTModel": lambda s: transformers(s) | zeros("pooler.dense.weight"),
    "ViTForImageClassification": lambda s: (
        prefixed(transformers(s), "vit.") | zeros("classifier.weight", "classifier.bias")
    ),
    "ViTForMaskedImageModeling": lambda s: (
        prefixed(transformers(s), "vit.") | zeros("vit.embeddings.mask_token", "decoder.0.weight")
    ),
    "ViTModel of Lightning": lambda s: {"state_dict": prefixed(transformers(s), "model.vit.")},
    "ViTModel of transformers 5": lambda s: renamed(
        transformers(s),
        {
            "encoder.layer.": "layers.",
            ".attention.attention.query.": ".attention.q_proj.",
            ".attention.attention.key.": ".attention.k_proj.",
            ".attention.attention.value.": ".attention.v_proj.",
            ".attention.output.dense.": ".attention.o_proj.",
        },
    ),
    "Dinov2Model": lambda s: renamed(apart(s), DINOV2) | zeros("embeddings.mask_token"),
    "torchvision": lambda s: (
        renamed(s, TORCHVISION) | zeros("heads.head.weight", "heads.head.bias")
    ),
    "torchvision's first names": lambda s: renamed(
        s, TORCHVISION | {".mlp.fc1.": ".mlp.linear_1.", ".mlp.fc2.": ".mlp.linear_2."}
    ),
    "torchvision's references": lambda s: {
        "model": renamed(other(s), TORCHVISION),
        "model_ema": prefixed(renamed(s, TORCHVISION), "module."),
    },
    "MMPretrain": lambda s: {
        "meta": {"epoch": 3},
        "state_dict": prefixed(renamed(s, MMPRETRAIN), "backbone.")
        | zeros("head.layers.head.bias"),
    },
}


@pytest.fixture(scope="module")
def state() -> State:
    return dict(tiny_vit(seed=6, depth=2).state_dict())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def load(content: object, folder: Path, **options: Any) -> Backbone:
    torch.save(content, path := folder / "weights.pth")
    return load_backbone("vit_tiny_patch16_224", str(path), "none", options={**SMALL, **options})


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_features(variant: str, state: State, images: Tensor, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backbone = load(VARIANTS[variant](state), tmp_path)
    loaded = backbone.vit.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    vit = tiny_vit(seed=6, depth=2).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(images), vit.forward_features(images)[:, 0], rtol=1e-4, atol=1e-4
        )


def test_prompts_are_left_out_with_a_warning(state: State, tmp_path: Path) -> None:
    content = state | zeros("prompt_embeddings", "e_prompt.prompt_key")
    with pytest.warns(UserWarning, match=r"its prompts \(prompt_embeddings, e_prompt\.prompt_key"):
        backbone = load(content, tmp_path)
    assert torch.equal(backbone.vit.state_dict()["pos_embed"], state["pos_embed"])


def test_clip_under_both_names(tmp_path: Path) -> None:
    """OpenAI's names, and those of transformers with the text tower beside."""
    options = {"pre_norm": True, "depth": 2}
    clip = dict(tiny_vit(seed=2, **options).state_dict())
    names = TRANSFORMERS_CLIP | {"norm_pre.": "pre_layrnorm."}
    theirs = prefixed(renamed(apart(clip), names), "vision_model.")
    theirs["vision_model.embeddings.class_embedding"] = clip["cls_token"].flatten()
    theirs["vision_model.embeddings.position_embedding.weight"] = clip["pos_embed"][0]
    theirs |= zeros("text_model.encoder.layers.0.layer_norm1.weight", "logit_scale")
    for content in (theirs, as_openai(clip)):
        loaded = load(content, tmp_path, **options).vit.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in clip.items())


def test_registers_of_meta(tmp_path: Path) -> None:
    """The class token has a position of its own there; timm's own filter adds it to the token."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    options = {"reg_tokens": 4, "no_embed_class": True, "depth": 2}
    vit = tiny_vit(seed=3, **options).eval()
    meta = dict(vit.state_dict())
    meta["register_tokens"] = meta.pop("reg_token")
    position = torch.randn(1, 1, 32)
    meta["pos_embed"] = torch.cat([position, meta["pos_embed"]], 1)
    meta["mask_token"] = torch.zeros(1, 32)
    backbone = load(meta, tmp_path, **options)
    expected = checkpoint_filter_fn(dict(meta), vit)
    loaded = backbone.vit.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())
    with pytest.raises(UserError, match=r"has unknown register_tokens;"):
        load(meta, tmp_path)


def test_adapters_that_are_not_merged(state: State, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"weights\.pth: holds adapters .*blocks\.0\.attn\.qkv\.lora_A\.default\.weight and 1 "
        r"more\); merge them .*merge_and_unload",
    ):
        load(peft(state, adapters=True), tmp_path)


def test_several_networks_of_which_none_comes_first(state: State, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds several ViTs, .* 'left\.' and 'right\.'; save"):
        load(prefixed(state, "left.") | prefixed(state, "right."), tmp_path)
    with pytest.raises(UserError, match=r"holds several networks, left, right; save the one"):
        load({"left": state, "right": state}, tmp_path)


def test_names_that_nobody_published(state: State, tmp_path: Path) -> None:
    """The advice is not to look for another model."""
    content = {re.sub(r"^blocks\.", "transformer.", key): value for key, value in state.items()}
    content["patches.weight"] = content.pop("patch_embed.proj.weight")
    with pytest.raises(
        UserError,
        match=r"names its tensors in a way that is not known here, such as transformer\.0\.\S+ .*, "
        r"where timm has .*patch_embed\.proj\.weight.* rename them",
    ) as error:
        load(content, tmp_path)
    assert "name the model" not in str(error.value)


def test_safetensors_too(state: State, tmp_path: Path) -> None:
    content = {key: value.contiguous() for key, value in renamed(state, TORCHVISION).items()}
    save_file(content, path := tmp_path / "vit.safetensors")
    backbone = load_backbone("vit_tiny_patch16_224", str(path), "none", options=SMALL)
    assert torch.equal(backbone.vit.state_dict()["norm.bias"], state["norm.bias"])
