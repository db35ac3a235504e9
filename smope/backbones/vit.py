"""The frozen ViT: created by timm, loaded with every key accounted for, and never trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from smope.backbones.weights import EMBEDDED, Weights, hub_file, metadata_numbers, read_weights
from smope.errors import UserError

WANTED = (
    "prompt experts need a plain timm VisionTransformer with a CLS token, such as vit_base_patch16_224.augreg_in21k"
)


@dataclass(frozen=True)
class BackboneIdentity:
    """Which weights these are: enough to tell two runs' backbones apart and to get the same again.

    mean, std: the pixel statistics applied to images in [0, 1], one number a channel (0 and 1: none).
    """

    name: str
    source: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON gives it back: lists, not tuples."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


class Backbone(nn.Module):
    """A frozen ViT with its own pixel statistics: images (B, 3, S, S) in [0, 1] -> CLS features (B, C) after its norm.

    Always in evaluation mode (no dropout, no stochastic depth) and without gradients for its weights; gradients still
    flow through it to whatever is injected into it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: VisionTransformer, identity: BackboneIdentity) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.identity = identity
        self.register_buffer("mean", torch.tensor(identity.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(identity.std).view(1, -1, 1, 1), persistent=False)
        self.eval()

    @property
    def embed_dim(self) -> int:
        return self.vit.embed_dim

    @property
    def image_size(self) -> int:
        return self.vit.patch_embed.img_size[0]

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features((images - self.mean) / self.std)[:, 0]


def load_backbone(
    name: str,
    weights: str = "hub",
    pixel_statistics: Literal["own", "none", "given"] = "own",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    image_size: int | None = None,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """A frozen backbone.

    name:             a timm ViT with a CLS token, with its tag (vit_base_patch16_224.augreg_in21k) where statistics or
                      weights follow from it.
    weights:          "hub" (timm's file for the tag), "embedded" (the small glyph ViT of this package), "random"
                      (untrained, for tests) or a file.
    pixel_statistics: "own" (what the weights were trained with), "none" (pixels stay in [0, 1], as in the authors'
                      program) or "given" (mean and std, one number a channel).
    image_size:       pixels, if not the model's own; position embeddings are resampled.
    options:          further keyword arguments of timm.create_model.
    """
    vit = _create(name, image_size, options or {})
    loaded = _find_weights(name, weights)
    if loaded is not None:
        _load(vit, loaded)
    own = _own_statistics(name, loaded) if pixel_statistics == "own" else None
    if pixel_statistics == "given" and (mean is None or std is None):
        raise UserError("backbone.pixel_statistics=given needs backbone.mean and backbone.std, three numbers each")
    statistics = {"own": own, "none": ((0.0,) * 3, (1.0,) * 3), "given": (tuple(mean or ()), tuple(std or ()))}[
        pixel_statistics
    ]
    assert statistics is not None
    source, sha256 = (loaded.source, loaded.sha256) if loaded else ("random", _tensors_sha256(vit))
    return Backbone(vit, BackboneIdentity(name, source, sha256, *statistics))


def _create(name: str, image_size: int | None, options: dict[str, Any]) -> VisionTransformer:
    if not timm.is_model(name.split(".")[0]):
        close = timm.list_models(f"*{name.split('.')[0][:12]}*")[:3]
        hint = f"; close: {', '.join(close)}" if close else ""
        raise UserError(f"backbone.name={name}: timm has no such model{hint}")
    extra = {"img_size": image_size} if image_size is not None else {}
    try:
        vit = timm.create_model(name, pretrained=False, num_classes=0, **{"global_pool": "token", **options, **extra})
    except (TypeError, RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"backbone.name={name}: timm cannot build it with {options | extra} and a CLS token ({error}); {WANTED}"
        ) from error
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None:
        raise UserError(f"backbone.name={name}: timm builds a {type(vit).__name__} for it; {WANTED}")
    return vit


def _find_weights(name: str, weights: str) -> Weights | None:
    if weights == "random":
        return None
    if weights == "embedded":
        loaded = read_weights(EMBEDDED)
        return Weights(loaded.tensors, "embedded", loaded.sha256, loaded.metadata)
    if weights == "hub":
        loaded = read_weights(hub_file(name))
        return Weights(loaded.tensors, f"hub:{name}", loaded.sha256, loaded.metadata)
    return read_weights(Path(weights).expanduser())


def _load(vit: VisionTransformer, weights: Weights) -> None:
    """Load, with every backbone key accounted for: timm itself would leave what does not match at random."""
    tensors = {key: value.float() for key, value in weights.tensors.items()}
    own = vit.state_dict()
    if "pos_embed" in tensors and "pos_embed" in own and tensors["pos_embed"].shape != own["pos_embed"].shape:
        tensors = dict(checkpoint_filter_fn(tensors, vit))
    # The mask token that self-supervised training leaves behind plays no part in the forward pass.
    unexpected = [key for key in tensors if key not in own and key != "mask_token"]
    missing = [key for key in own if key not in tensors]
    wrong = [key for key in own if key in tensors and tensors[key].shape != own[key].shape]
    for problem, keys in (("lacks", missing), ("has unknown", unexpected), ("has other shapes for", wrong)):
        if keys:
            shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise UserError(
                f"backbone.weights={weights.source}: {problem} {shown}; the file does not fit the architecture "
                f"backbone.name ({vit.embed_dim} wide, {len(vit.blocks)} blocks): name the model that it was saved from"
            )
    vit.load_state_dict({key: tensors[key] for key in own})


def _own_statistics(name: str, loaded: Weights | None) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std the weights were trained with: written in the file, or known to timm for the tag."""
    if loaded is not None:
        mean, std = metadata_numbers(loaded.metadata, "mean"), metadata_numbers(loaded.metadata, "std")
        if mean and std:
            return mean, std
    config = get_pretrained_cfg(name)
    if config is None or ("." not in name and loaded is not None):
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")[:4])
        raise UserError(
            f"backbone.name={name}: without a tag it does not say which pixel statistics its weights were trained "
            f"with; add the tag ({tags}) or set backbone.pixel_statistics=given with mean and std"
        )
    return tuple(config.mean), tuple(config.std)


def _tensors_sha256(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
