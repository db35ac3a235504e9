"""The frozen backbone: its preprocessing, its evaluation mode, its position embeddings, and the
weights that ship.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from smope.backbones.vit import Backbone, load_backbone
from smope.backbones.weights import EMBEDDED
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from tests.tiny import tiny_backbone, tiny_vit

TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A file that says nothing of pixel statistics."""
    save_file(tiny_vit(depth=2).state_dict(), tmp_path / "vit.safetensors")
    return str(tmp_path / "vit.safetensors")


@pytest.fixture
def documented(tmp_path: Path) -> str:
    """A file whose header holds the pixel statistics that it was trained with."""
    metadata = {"mean": json.dumps([0.1, 0.2, 0.3]), "std": json.dumps([0.4, 0.5, 0.6])}
    save_file(tiny_vit(depth=2).state_dict(), tmp_path / "documented.safetensors", metadata)
    return str(tmp_path / "documented.safetensors")


def assert_statistics(
    backbone: Backbone, mean: tuple[float, ...], std: tuple[float, ...], images: Tensor
) -> None:
    assert backbone.identity.mean == mean
    assert backbone.identity.std == std
    pixels = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        expected = backbone.vit.forward_features(pixels)[:, 0]
        torch.testing.assert_close(backbone(images), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(
            backbone(images), backbone.vit.forward_features(pixels + 0.05)[:, 0], atol=1e-5
        )


def test_own_statistics_are_those_in_the_file(documented: str, images: Tensor) -> None:
    backbone = load_backbone("vit_tiny_patch16_224", documented, options=SMALL)
    assert_statistics(backbone, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), images)


@pytest.mark.parametrize(
    ("tag", "mean", "std"),
    [
        (TAG, (0.5,) * 3, (0.5,) * 3),
        ("vit_small_patch16_224.dino", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_own_statistics_are_those_of_the_tag(
    tag: str, mean: tuple[float, ...], std: tuple[float, ...], weights: str, images: Tensor
) -> None:
    assert_statistics(load_backbone(tag, weights, options=SMALL), mean, std, images)


def test_own_statistics_of_a_file_nobody_knows(weights: str) -> None:
    with pytest.raises(
        UserError,
        match=r"vit_tiny_patch16_224: without a tag .*augreg_in21k.*pixel_statistics=given",
    ):
        load_backbone("vit_tiny_patch16_224", weights, options=SMALL)


def test_no_statistics(documented: str, images: Tensor) -> None:
    backbone = load_backbone("vit_tiny_patch16_224", documented, "none", options=SMALL)
    assert_statistics(backbone, (0.0,) * 3, (1.0,) * 3, images)
    with torch.no_grad():
        expected = backbone.vit.forward_features(images)[:, 0]
        torch.testing.assert_close(backbone(images), expected, rtol=1e-5, atol=1e-5)


def test_given_statistics(documented: str, images: Tensor) -> None:
    mean, std = [0.3, 0.2, 0.1], [0.9, 0.8, 0.7]
    backbone = load_backbone("vit_tiny_patch16_224", documented, "given", mean, std, options=SMALL)
    assert_statistics(backbone, tuple(mean), tuple(std), images)


@pytest.mark.parametrize("given", [{}, {"mean": [0.5] * 3}, {"std": [0.5] * 3}], ids=str)
def test_given_statistics_must_be_given(given: dict[str, Any], weights: str) -> None:
    with pytest.raises(
        UserError, match=r"pixel_statistics=given needs backbone\.mean and backbone\.std"
    ):
        load_backbone("vit_tiny_patch16_224", weights, "given", options=SMALL, **given)


def test_it_stays_in_evaluation_mode(images: Tensor) -> None:
    backbone = tiny_backbone(depth=2, proj_drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5)
    with torch.no_grad():
        before = backbone(images)
        assert backbone.train() is backbone
        assert not any(module.training for module in backbone.modules())
        torch.nn.Sequential(backbone).train()
        assert not any(module.training for module in backbone.modules())
        assert torch.equal(backbone(images), before)


def test_its_weights_take_no_gradient_but_let_it_pass(images: Tensor) -> None:
    backbone = tiny_backbone(depth=2)
    backbone(images.requires_grad_()).square().sum().backward()
    assert images.grad.abs().max() > 0
    assert not any(p.requires_grad or p.grad is not None for p in backbone.parameters())


def test_statistics_follow_the_precision_and_are_not_saved() -> None:
    backbone = tiny_backbone(depth=1)
    assert not {"mean", "std"} & set(backbone.state_dict())
    assert backbone.double().mean.dtype == torch.float64


@pytest.mark.parametrize("size", [16, 64])
def test_position_embeddings_are_resampled(size: int, weights: str) -> None:
    own = load_backbone("vit_tiny_patch16_224", weights, "none", options=SMALL)
    other = load_backbone("vit_tiny_patch16_224", weights, "none", options=SMALL, image_size=size)
    assert other.image_size == size
    old, new = own.vit.state_dict(), other.vit.state_dict()
    side = size // 8
    assert new["pos_embed"].shape == (1, 1 + side * side, 32)
    expected = resample_abs_pos_embed(old["pos_embed"], [side, side], num_prefix_tokens=1)
    torch.testing.assert_close(new["pos_embed"], expected)
    assert torch.equal(new["pos_embed"][:, 0], old["pos_embed"][:, 0])
    assert all(torch.equal(new[key], old[key]) for key in old if key != "pos_embed")
    assert other(torch.rand(1, 3, size, size)).shape == (1, 32)
    assert other.identity == own.identity


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (
            (32, 128),
            r"positions of 64 patches, and the model has 4 x 4; if they are 8 x 8, write "
            r"backbone\.image_size=64 .* or backbone\.image_size=32 to have them resampled$",
        ),
        ((64, 64), r"positions of 64 patches, and the model has 4 x 4; if they are 8 x 8, write"),
        (
            (32, 64),
            r"positions of 32 patches, .*; 32 patches are no square: get weights for square",
        ),
    ],
    ids=str,
)
def test_positions_of_another_grid_are_not_rearranged(
    sides: tuple[int, int], message: str, tmp_path: Path
) -> None:
    """A file does not say whether its 64 positions are 8 x 8 or 4 x 16."""
    save_file(tiny_vit(depth=2, img_size=sides).state_dict(), path := tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=rf"vit\.safetensors: has {message}"):
        load_backbone("vit_tiny_patch16_224", str(path), "none", options=SMALL)
    if sides == (64, 64):
        own = load_backbone("vit_tiny_patch16_224", str(path), "none", image_size=64, options=SMALL)
        positions = tiny_vit(depth=2, img_size=64).pos_embed
        assert torch.equal(own.vit.pos_embed, positions)


def test_random_weights_are_told_apart() -> None:
    first, same, second = (_random(seed) for seed in (0, 0, 1))
    assert first.identity == same.identity
    assert first.identity.source == "random"
    assert first.identity.sha256 != second.identity.sha256


def _random(seed: int) -> Backbone:
    torch.manual_seed(seed)
    return load_backbone("vit_tiny_patch16_224", "random", "none", options=SMALL)


def test_the_identity_is_the_same_after_json() -> None:
    identity = tiny_backbone(depth=1).identity.as_dict()
    assert json.loads(json.dumps(identity)) == identity
    assert set(identity) == {"name", "source", "sha256", "mean", "std"}


def test_options_that_do_not_fit_the_model() -> None:
    with pytest.raises(UserError, match=r"timm cannot build it with \{'num_heads': 5\}"):
        load_backbone("vit_tiny_patch16_224", "random", "none", options={"num_heads": 5})


def test_the_embedded_weights() -> None:
    group = dict(compose(read_overrides(["backbone=glyph_vit"])).backbone)
    del group["_target_"]
    backbone = load_backbone(**group)
    assert backbone.identity.source == "embedded"
    assert backbone.identity.sha256 == hashlib.sha256(EMBEDDED.read_bytes()).hexdigest()
    assert len(backbone.identity.mean) == len(backbone.identity.std) == 3
    assert min(backbone.identity.std) > 0
    assert EMBEDDED.stat().st_size <= 8_000_000
    assert 1e6 <= sum(parameter.numel() for parameter in backbone.parameters()) <= 3e6
    assert (EMBEDDED.parent / "README.md").is_file()
    features = backbone(torch.rand(2, 3, backbone.image_size, backbone.image_size))
    assert torch.isfinite(features).all()
    assert not torch.allclose(features[0], features[1])


@pytest.fixture(scope="session")
def real_file(data_root: Path) -> Path:
    path = data_root / "weights" / f"{TAG}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the data")
    return path


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_real_weights_as_timm_loads_them(folder: bool, real_file: Path) -> None:
    weights = real_file.parent if folder else real_file
    group = dict(
        compose(read_overrides(["backbone=vit_tiny", f"backbone.weights={weights}"])).backbone
    )
    del group["_target_"]
    backbone = load_backbone(**group)
    overlay = {"file": str(real_file)}
    theirs = timm.create_model(
        TAG, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0
    ).eval()
    ours, expected = backbone.vit.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)
    assert (backbone.identity.name, backbone.identity.source) == (TAG, str(real_file))
    assert backbone.identity.sha256 == hashlib.sha256(real_file.read_bytes()).hexdigest()
    assert backbone.identity.mean == backbone.identity.std == (0.5, 0.5, 0.5)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        features = theirs((images - 0.5) / 0.5)
        assert torch.equal(backbone.vit((images - 0.5) / 0.5), features)
        torch.testing.assert_close(backbone(images), features, rtol=1e-4, atol=1e-4)


def test_real_weights_of_another_name(real_file: Path) -> None:
    with pytest.raises(
        UserError, match=r"has other shapes for .*\(768 wide, 12 blocks\): name the model that"
    ):
        load_backbone("vit_base_patch16_224.dino", str(real_file))


def test_an_image_of_whole_patches_only() -> None:
    with pytest.raises(
        UserError,
        match=r"backbone\.image_size must be a multiple of the patch size 8, got 36; .*=32",
    ):
        load_backbone("vit_tiny_patch16_224", "random", "none", image_size=36, options=SMALL)
