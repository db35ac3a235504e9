"""The names that published programs give the tensors of a ViT, translated to timm's.

A file is recognised by its patch projection, whose name differs in every layout. What stands before
that name is the prefix of the whole ViT: `module.`, `model.backbone.`, `visual.trunk.` and others.
Tensors of other prefixes belong to other networks of the same file.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from smope.errors import UserError


@dataclass(frozen=True)
class Naming:
    """How one program names its tensors.

    Attributes:
        anchor: A name that only this program has, as a pattern.
        renames: Patterns and what replaces them, in this order, in names without a prefix.
    """

    anchor: str
    renames: tuple[tuple[str, str], ...]


NAMINGS = {
    "timm": Naming(
        r"patch_embed\.proj\.weight",
        # Meta trains DINOv2 with blocks in chunks, and joins the two gates of its MLP
        (
            (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),
            (r"\.mlp\.w12\.", ".mlp.fc1."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ),
    ),
    # https://github.com/openai/CLIP/blob/main/clip/model.py
    "OpenAI": Naming(
        r"(?<!embeddings\.)class_embedding",
        (
            (r"^conv1\.", "patch_embed.proj."),
            (r"^class_embedding$", "cls_token"),
            (r"^positional_embedding$", "pos_embed"),
            (r"^ln_pre\.", "norm_pre."),
            (r"^ln_post\.", "norm."),
            (r"^transformer\.resblocks\.", "blocks."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.in_proj_", ".qkv."),
            (r"\.out_proj\.", ".proj."),
            (r"\.c_fc\.", ".fc1."),
            (r"\.c_proj\.", ".fc2."),
        ),
    ),
    # ViTModel, DeiTModel, Dinov2Model and those with heads of transformers 4 and 5
    "transformers": Naming(
        r"embeddings\.patch_embeddings\.projection\.weight",
        (
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.distillation_token$", "dist_token"),
            (r"^embeddings\.(\w+_tokens?)$", r"\1"),
            (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
            (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
            (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
            (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
            (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
            (r"\.mlp\.weights_in\.", ".mlp.fc1."),
            (r"\.mlp\.weights_out\.", ".mlp.fc2."),
            (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
            (r"^layernorm\.", "norm."),
        ),
    ),
    # CLIPVisionModel and CLIPModel of transformers
    "transformers' CLIP": Naming(
        r"embeddings\.patch_embedding\.weight",
        (
            (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
            (r"^embeddings\.class_embedding$", "cls_token"),
            (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
            (r"^pre_layrnorm\.", "norm_pre."),
            (r"^post_layernorm\.", "norm."),
            (r"^encoder\.layers\.", "blocks."),
            (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
            (r"\.self_attn\.out_proj\.", ".attn.proj."),
            (r"\.layer_norm(\d)\.", r".norm\1."),
        ),
    ),
    "torchvision": Naming(
        r"conv_proj\.weight",
        (
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^class_token$", "cls_token"),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_", "blocks."),
            (r"^encoder\.ln\.", "norm."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
        ),
    ),
    "MMPretrain": Naming(
        r"patch_embed\.projection\.weight",
        (
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.", "blocks."),
            (r"(^|\.)ln1\.", r"\1norm1."),
            (r"\.ln2\.", ".norm2."),
            (r"^norm1\.", "norm."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        ),
    ),
}
# What torch.compile, FSDP, activation checkpoints and peft put into names, wherever they wrap.
WRAPPED = re.compile(
    r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer"
    r"|modules_to_save\.\w+)\."
)
ADAPTER = re.compile(r"(^|\.)(lora_|ia3_|adapter|oft_|hada_|vera_)")
# Of several ViTs in a file, those of the first pattern: the one that its authors evaluate, as for
# DINO and EMA the average, and for MoCo the one that learns.
PREFERRED = (
    re.compile(r"(^|[._])(ema|averaged|swa)"),
    re.compile(r"(^|[._])teacher"),
    re.compile(r"(^|\.)(base_encoder|encoder_q|online_\w+)\."),
    re.compile(r"(^|[._])student"),
)
FOLLOWERS = re.compile(r"(^|[._])(momentum|target|encoder_k)")
PROMPT = re.compile(r"\w*prompts?(_\w+)?(\.|$)")
# Tensors beside the ViT of training: classifiers, projections, decoders, what stands in place of
# masked patches (DINOv2, MAE; iBOT), and the layer of old ViTs before the classifier. The CLS
# feature does not read them.
BESIDE = re.compile(
    r"(\w+_)?heads?(_dist)?\.|fc_norm\.|classifier\.|cls_classifier\.|distillation_classifier\."
    r"|fc\.|last_layer\.|(\w+_)?(projector|predictor|projection|pooler)\.|proj$|decoder\w*(\.|$)"
    r"|mask_token$|masked_embed$|pre_logits\.|queue(_ptr)?$|n_averaged$|logit_(scale|bias)$"
    r"|embeddings\.(position_ids|mask_token)$"
)


def timm_keys(
    tensors: dict[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Tensors by timm's names.

    Names that are neither known nor of another network of the file stay, so that loading reports
    them as unknown.

    Args:
        tensors: By the names of the file.
        expected: The state of the model that they are for.
        path: The file, for error messages.

    Raises:
        UserError: There are several ViTs of which none comes first, or adapters.
    """
    tensors = _without_wrappers(tensors, path)
    towers = list(_towers(tensors))
    if not towers:
        return _without_beside(tensors, expected, path)
    prefix, naming = _chosen(tensors, towers, expected, path)
    inside: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            inside[_renamed(key.removeprefix(prefix), naming)] = value
    others = tuple(other for other, _ in towers if other not in ("", prefix))
    for key, value in tensors.items():
        # Never let one tensor stand for another of the same name.
        if key in inside and not key.startswith((prefix, *others)):
            inside[f"{key} beside {prefix}{key}"] = value
    return _registers(_shaped(_joined(_without_beside(inside, expected, path))), expected)


def _without_wrappers(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without the parts of names that wrappers add; UserError if there are adapters."""
    adapters = [key for key in tensors if ADAPTER.search(key)]
    if adapters:
        raise UserError(
            f"backbone.weights={path}: holds adapters that are not merged into the weights "
            f"({adapters[0]} and {len(adapters) - 1} more); merge them where they were trained "
            f"(peft: model = model.merge_and_unload()), save model.state_dict(), and give that file"
        )
    originals = {key for key in tensors if "original_module." in key}
    return {WRAPPED.sub("", key): value for key, value in tensors.items() if key not in originals}


def _towers(tensors: Iterable[str]) -> Iterable[tuple[str, Naming]]:
    """The prefix and the layout of every ViT in a file."""
    for naming in NAMINGS.values():
        anchor = re.compile(rf"(?P<prefix>(.*\.)?){naming.anchor}")
        for key in tensors:
            if match := anchor.fullmatch(key):
                yield match["prefix"], naming


def _chosen(
    tensors: Mapping[str, Tensor],
    towers: list[tuple[str, Naming]],
    expected: Mapping[str, Tensor],
    path: Path,
) -> tuple[str, Naming]:
    """The ViT that is meant; UserError if that is not clear."""
    if len(towers) > 1:
        fitting = [tower for tower in towers if _fits(tensors, *tower, expected)]
        towers = fitting or towers
    for pattern in PREFERRED:
        preferred = [tower for tower in towers if pattern.search(tower[0])]
        towers = preferred or towers
    towers = [tower for tower in towers if not FOLLOWERS.search(tower[0])] or towers
    if len(towers) > 1:
        names = " and ".join(repr(prefix) for prefix, _ in towers)
        raise UserError(
            f"backbone.weights={path}: holds several ViTs, whose names begin with {names}; save "
            f"the one that you want in a file of its own"
        )
    return towers[0]


def _fits(
    tensors: Mapping[str, Tensor], prefix: str, naming: Naming, expected: Mapping[str, Tensor]
) -> bool:
    """Whether the ViT under a prefix has the expected names, and blocks of the expected width."""
    names = {
        _renamed(key.removeprefix(prefix), naming): value.shape
        for key, value in tensors.items()
        if key.startswith(prefix)
    }
    norms = [key for key in expected if key.endswith(("norm1.weight", "norm.weight"))]
    return all(names.get(key) == expected[key].shape for key in norms)


def _renamed(name: str, naming: Naming) -> str:
    for pattern, replacement in naming.renames:
        name = re.sub(pattern, replacement, name)
    return name


def _without_beside(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Without the tensors of training, and without prompts, of which a warning says so."""
    prompts = [key for key in tensors if PROMPT.match(key)]
    if prompts:
        warnings.warn(
            f"backbone.weights={path}: its prompts ({', '.join(prompts[:3])}) are left out; the "
            f"backbone is the ViT without them",
            stacklevel=2,
        )
    left_out = {key for key in tensors if key not in expected and BESIDE.match(key)}
    return {key: tensors[key] for key in tensors if key not in left_out.union(prompts)}


def _joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value projections of each block as timm's joint one."""
    for query in [key for key in tensors if ".attn.q." in key]:
        keys = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(key in tensors for key in keys):
            joint = torch.cat([tensors.pop(key) for key in keys])
            tensors[query.replace(".attn.q.", ".attn.qkv.")] = joint
    return tensors


def _shaped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Class token and positions, (C,) and (N, C) in some layouts, as (1, 1, C) and (1, N, C)."""
    for key in ("cls_token", "pos_embed"):
        if key in tensors and 0 < tensors[key].ndim < 3:
            tensors[key] = tensors[key].reshape(1, -1, tensors[key].shape[-1])
    return tensors


def _registers(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's registers as timm's: there the class token has a position, here it is added to it.

    This is what timm's own filter does (timm/models/vision_transformer.py, _convert_dinov2).
    """
    if "reg_token" in expected and "register_tokens" in tensors:
        tensors["reg_token"] = tensors.pop("register_tokens")
        if {"cls_token", "pos_embed"} <= tensors.keys():
            positions = tensors["pos_embed"]
            tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
            tensors["pos_embed"] = positions[:, 1:]
    return tensors
