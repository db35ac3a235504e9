"""The frozen ViT: timm creates it, every key of the weight file must match, no method trains it.

Methods that fine-tune the backbone itself call `unfreeze`.

Shapes: B batch, S side of an image in pixels, N tokens, C width.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed  # pyright: ignore[reportPrivateImportUsage] (its public home)
from timm.models import get_pretrained_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smope.backbones.files import AUTHORS_FILES, hub_file, tags, weight_file
from smope.backbones.forward import cls_and_tokens, cls_features, cls_of_last_blocks
from smope.backbones.held import hold_frozen_weights
from smope.backbones.known_features import KnownFeatures
from smope.backbones.options import check_names, check_options
from smope.backbones.patches import check_image_size
from smope.backbones.pixel_range import PixelRange
from smope.backbones.weights import EMBEDDED, Weights, metadata_numbers, read_weights
from smope.declare.ranges import Channels, Range
from smope.declare.texts import NameOf, WeightFile
from smope.errors import UserError

REQUIREMENT = (
    "prompt experts need a plain timm VisionTransformer with a CLS token, such as "
    "vit_base_patch16_224.augreg_in21k"
)


@dataclass(frozen=True)
class BackboneIdentity:
    """Identifies a backbone: enough to tell two apart, and to load the same one again.

    Attributes:
        name: The timm model, with its tag.
        source: Where the weights come from: hub:<name>, embedded, random, or a path.
        sha256: Of the weight file; of the tensors where they are random.
        mean: Subtracted from pixels in [0, 1], one number for each channel; 0: nothing.
        std: Divides them, one number for each channel; 1: nothing.
    """

    name: str
    source: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """As it is read back from JSON: with lists instead of tuples."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


class Backbone(nn.Module):
    """A frozen ViT with its pixel statistics: images (B, 3, S, S) in [0, 1] -> CLS features (B, C).

    It is always in evaluation mode, without dropout and stochastic depth. While it is `frozen`, its
    weights get no gradients, but gradients flow through it to what is injected into it.

    Attributes:
        recompute: Keep less for the backward pass, and run each block again there.
        whole_last_block: Compute all rows of the last block; the features are the same.
        known: The features of the batch that is in use, for Method.frozen_features.
    """

    recompute: bool = False
    frozen: bool = True
    whole_last_block: bool = False
    known: KnownFeatures | None = None
    mean: Tensor
    std: Tensor

    def __init__(self, vit: VisionTransformer, identity: BackboneIdentity) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.identity = identity
        self.register_buffer(
            "mean", torch.tensor(identity.mean).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor(identity.std).view(1, -1, 1, 1), persistent=False)
        self._range = PixelRange(normalises=any(identity.mean))
        self.eval()

    @property
    def embed_dim(self) -> int:
        """C."""
        return self.vit.embed_dim

    @property
    def image_size(self) -> int:
        """S."""
        return self.vit.patch_embed.img_size[0]

    def unfreeze(self) -> None:
        """Let the weights be trained; `identity` still names those that training began with."""
        self.vit.requires_grad_(True)
        self.frozen = False

    def hold(self, dtype: torch.dtype) -> None:
        """Keep what is frozen in `dtype` as well, for forward passes under autocast to it: the
        same results, sooner.
        """
        hold_frozen_weights(self, dtype)

    def train(self, mode: bool = True) -> Backbone:
        """Stays in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, images: Tensor, with_tokens: bool = False) -> Tensor:
        """The features of images.

        Args:
            images: (B, 3, S, S), pixels in [0, 1]; UserError for bytes.
            with_tokens: Append the mean patch token before the last block, from the same pass,
                normalised to zero mean and unit variance over channels.

        Returns:
            The CLS feature after the ViT's norm, (B, C); (B, 2C) with_tokens.
        """
        if not with_tokens:
            return cls_features(self.vit, self._pixels(images), **self._options)
        features, tokens = cls_and_tokens(self.vit, self._pixels(images), **self._options)
        mean = tokens[:, self.vit.num_prefix_tokens :].mean(1)
        return torch.cat([features, F.layer_norm(mean, (self.embed_dim,))], -1)

    def cls_of_last_blocks(self, images: Tensor, count: int) -> Tensor:
        """The CLS row that each of the last blocks gives, from one pass.

        Args:
            images: (B, 3, S, S), pixels in [0, 1]; UserError for bytes.
            count: How many blocks, at most as many as there are.

        Returns:
            (B, count, C), before the ViT's norm, in the order of the blocks.
        """
        whole = self.whole_last_block
        return cls_of_last_blocks(self.vit, self._pixels(images), count, whole_last_block=whole)

    def _pixels(self, images: Tensor) -> Tensor:
        self._range.check(images)
        return (images - self.mean) / self.std

    @property
    def _options(self) -> dict[str, bool]:
        return {"recompute": self.recompute, "whole_last_block": self.whole_last_block}


def load_backbone(
    name: Annotated[str, NameOf("timm model", "vit_base_patch16_224.dino")],
    weights: WeightFile = "hub",
    pixel_statistics: Literal["own", "none", "given"] = "own",
    mean: Annotated[list[float] | None, Channels()] = None,
    std: Annotated[list[float] | None, Channels(positive=True)] = None,
    image_size: Annotated[int | None, Range(1, 4096, example="224")] = None,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """Create a backbone and load its weights. The arguments are the keys of conf/backbone/.

    Args:
        name: A timm ViT with a CLS token. With its tag, as in vit_base_patch16_224.augreg_in21k, it
            decides Hub weights and pixel statistics.
        weights: "hub" (timm's file for the tag), "embedded" (the small ViT of this package),
            "random" (untrained, for tests), a file, or a folder with one weight file.
        pixel_statistics: "own" (what the weights were trained with), "none" (pixels stay in [0, 1],
            as in the authors' code) or "given" (`mean` and `std`).
        mean: One number for each channel.
        std: One number for each channel.
        image_size: Side in pixels, if not the model's own; position embeddings are resampled.
        options: Further keyword arguments of timm.create_model.

    Raises:
        UserError: There is no such model, or its weights cannot be found or do not fit.
    """
    vit = _create(name, image_size, options or {})
    loaded = _find_weights(name, weights, vit)
    if loaded is not None:
        _load(vit, loaded, resample=image_size is not None)
    weight_statistics = _own_statistics(name, loaded) if pixel_statistics == "own" else None
    if pixel_statistics == "given" and (mean is None or std is None):
        raise UserError(
            "backbone.pixel_statistics=given needs backbone.mean and backbone.std, three numbers "
            "each"
        )
    statistics = {
        "own": weight_statistics,
        "none": ((0.0,) * 3, (1.0,) * 3),
        "given": (tuple(mean or ()), tuple(std or ())),
    }[pixel_statistics]
    assert statistics is not None
    source, sha256 = (loaded.source, loaded.sha256) if loaded else ("random", tensors_sha256(vit))
    return Backbone(vit, BackboneIdentity(name, source, sha256, *statistics))


def _create(name: str, image_size: int | None, options: dict[str, Any]) -> VisionTransformer:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = timm.list_models(f"*{architecture[:12]}*")[:3]
        hint = f"; close: {', '.join(close)}" if close else ""
        raise UserError(f"backbone.name={name}: timm has no such model{hint}")
    check_options(options)
    extra = {"img_size": image_size} if image_size is not None else {}
    known = architecture if name in AUTHORS_FILES else name
    arguments = {"global_pool": "token", **options, **extra}
    try:
        with warnings.catch_warnings():
            # A deprecated name is an error below.
            warnings.filterwarnings("ignore", "Mapping deprecated model name")
            vit = timm.create_model(known, pretrained=False, num_classes=0, **arguments)
    except Exception as error:  # what timm raises for values that do not fit is not documented
        reason = str(error) or type(error).__name__
        if "unexpected keyword argument" in reason:
            check_names(options, inspect.signature(VisionTransformer).parameters, name)
        raise UserError(
            f"backbone.name={name}: timm cannot build it with {options | extra} and a CLS token "
            f"({reason}); {REQUIREMENT}"
        ) from error
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None:
        raise UserError(
            f"backbone.name={name}: timm builds a {type(vit).__name__} for it; {REQUIREMENT}"
        )
    check_square(name, vit)
    current: Any = vit.pretrained_cfg
    if current.get("architecture", architecture) != architecture:
        new = f"{current['architecture']}.{current['tag']}"
        raise UserError(
            f"backbone.name={name} is timm's old name for {new}; write backbone.name={new}"
        )
    return vit


def check_square(name: str, vit: VisionTransformer) -> None:
    """UserError unless images and patches are square, and patches cover an image."""
    for what in ("img_size", "patch_size"):
        height, width = getattr(vit.patch_embed, what)
        if height != width:
            raise UserError(
                f"backbone.name={name}: its {what} is {height} x {width}, and images are square "
                f"here; set backbone.options.{what} to one number"
            )
    check_image_size(vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0])


def _find_weights(name: str, weights: str, vit: VisionTransformer) -> Weights | None:
    if weights == "random":
        return None
    if weights == "embedded":
        return replace(read_weights(EMBEDDED, vit), source="embedded")
    if weights == "hub":
        return replace(read_weights(hub_file(name), vit), source=f"hub:{name}")
    return read_weights(weight_file(Path(weights).expanduser()), vit)


def _load(vit: VisionTransformer, weights: Weights, resample: bool) -> None:
    """Load weights whose keys all match; timm itself would leave other parameters at random.

    Only with `resample` may the file have positions of another grid. A file does not say how its
    positions are arranged: 64 may be 8 x 8 or 4 x 16.
    """
    tensors = {key: value.float() for key, value in weights.tensors.items()}
    expected_state = vit.state_dict()
    if resample and "pos_embed" in tensors and "pos_embed" in expected_state:
        tensors["pos_embed"] = _resampled(tensors["pos_embed"], vit)
    wrong = [
        key
        for key in expected_state
        if key in tensors and tensors[key].shape != expected_state[key].shape
    ]
    missing = [key for key in expected_state if key not in tensors]
    unexpected = [key for key in tensors if key not in expected_state]
    wrong.sort(key="pos_embed".__eq__)  # it follows from the others
    if wrong == ["pos_embed"] and not missing and not unexpected:
        raise UserError(
            f"backbone.weights={weights.source}: {_other_grid(tensors['pos_embed'], vit)}"
        )
    if len(missing) > len(expected_state) / 2 and unexpected:
        raise UserError(
            f"backbone.weights={weights.source}: names its tensors in a way that is not known "
            f"here, such as {_some(unexpected)}, where timm has {_some(missing)}; rename them as "
            f"timm does, or get the file in the layout of timm, transformers or torchvision"
        )
    for problem, keys in (
        ("has other shapes for", wrong),
        ("lacks", missing),
        ("has unknown", unexpected),
    ):
        if keys:
            raise UserError(
                f"backbone.weights={weights.source}: {problem} {_some(keys)}; the file does not "
                f"fit the architecture backbone.name ({vit.embed_dim} wide, "
                f"{len(vit.blocks)} blocks): name the model that it was saved from"
            )
    vit.load_state_dict(tensors)


def _some(keys: Sequence[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _other_grid(positions: Tensor, vit: VisionTransformer) -> str:
    """What is wrong with positions (1, N, C) of another number of patches, and what to do."""
    height, width = vit.patch_embed.grid_size
    patches = positions.shape[1] - (0 if vit.no_embed_class else vit.num_prefix_tokens)
    size, side = vit.patch_embed.img_size[0], math.isqrt(max(0, patches))
    problem = f"has positions of {patches} patches, and the model has {height} x {width}"
    if side == 0 or side * side != patches:
        return f"{problem}; {patches} patches are no square: get weights for square images"
    own = side * vit.patch_embed.patch_size[0]
    return (
        f"{problem}; if they are {side} x {side}, write backbone.image_size={own} to have images "
        f"of that size, or backbone.image_size={size} to have them resampled"
    )


def _resampled(positions: Tensor, vit: VisionTransformer) -> Tensor:
    """Position embeddings (1, N, C) of a square grid, resampled by timm to the grid of `vit`.

    Embeddings that need no change, or are not of a square grid, are returned unchanged.
    """
    prefix, grid = 0 if vit.no_embed_class else vit.num_prefix_tokens, vit.patch_embed.grid_size
    tokens = positions.shape[1] if positions.ndim == 3 and len(positions) == 1 else 0
    side = math.isqrt(max(0, tokens - prefix))
    if side == 0 or side * side + prefix != tokens or (side, side) == tuple(grid):
        return positions
    return resample_abs_pos_embed(positions, list(grid), [side, side], num_prefix_tokens=prefix)


def _own_statistics(name: str, loaded: Weights | None) -> tuple[Sequence[float], Sequence[float]]:
    """The mean and std that the weights were trained with, from the file or from timm's tag."""
    if loaded is not None:
        mean = metadata_numbers(loaded.metadata, "mean")
        std = metadata_numbers(loaded.metadata, "std")
        if mean and std:
            return mean, std
    if name in AUTHORS_FILES:
        return AUTHORS_FILES[name].mean, AUTHORS_FILES[name].std
    config = get_pretrained_cfg(name)
    if config is None or ("." not in name and loaded is not None):
        raise UserError(
            f"backbone.name={name}: without a tag it does not say which pixel statistics its "
            f"weights were trained "
            f"with; add the tag ({tags(name)}) or set backbone.pixel_statistics=given with mean "
            f"and std"
        )
    return tuple(config.mean), tuple(config.std)


def tensors_sha256(module: nn.Module) -> str:
    """A hash (hex) of all tensors of a module and their names."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
