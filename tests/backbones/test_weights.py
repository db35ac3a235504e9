"""Every layout in which weights arrive in a file, and every way in which a file can be wrong."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from smope.backbones.vit import load_backbone
from smope.backbones.weights import metadata_numbers, read_weights
from smope.errors import UserError
from tests.tiny import tiny_vit

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}


@pytest.fixture
def state() -> dict[str, Tensor]:
    """The weights of a small ViT without a classification head."""
    return dict(tiny_vit(seed=6, depth=2).state_dict())


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def changed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value + 1 for key, value in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "state dict": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "the teacher of a full checkpoint": lambda state: {
        "student": prefixed(changed(state), "module.backbone.")
        | {"module.head.mlp.0.weight": torch.zeros(3, 3)},
        "teacher": prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(3, 3)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 800,
        "dino_loss": {"center": torch.zeros(1, 9)},
    },
    "a teacher in parallel": lambda state: {
        "teacher": prefixed(state, "module.backbone.")
        | {"module.head.last_layer.weight_v": torch.zeros(3, 3)}
    },
    "a teacher with several heads": lambda state: {
        "teacher": prefixed(state, "backbone.") | {"dino_head.mlp.0.weight": torch.zeros(3, 3)}
    },
    "a student with its mask": lambda state: {
        "state_dict": state | {"masked_embed": torch.zeros(1, 32)}
    },
    "averaged weights": lambda state: {"state_dict": changed(state), "state_dict_ema": state},
    "module.": lambda state: prefixed(state, "module."),
    "module.backbone.": lambda state: {"state_dict": prefixed(state, "module.backbone.")},
    "with a head": lambda state: (
        state | {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}
    ),
    "with numbers": lambda state: state | {"epoch": 12, "name": "vit"},
    "with a mask token": lambda state: state | {"mask_token": torch.zeros(1, 32)},
    "half precision": lambda state: {key: value.half() for key, value in state.items()},
}


def assert_loads(path: Path, state: dict[str, Tensor], **close: float) -> None:
    """A backbone made from `path` has exactly `state`, and says where it came from."""
    backbone = load_backbone("vit_tiny_patch16_224", str(path), "none", options=SMALL)
    loaded = backbone.vit.state_dict()
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(loaded[key], value, **{"rtol": 0.0, "atol": 0.0, **close})
    assert backbone.identity.source == str(path)
    assert backbone.identity.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoints_of_pytorch(layout: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](state), path)
    assert_loads(
        path, state, **({"rtol": 1e-3, "atol": 1e-6} if layout == "half precision" else {})
    )


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "vit."])
def test_safetensors(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(prefixed(state, prefix), path, {"mean": "[0.1, 0.2, 0.3]"})
    assert_loads(path, state)
    metadata = read_weights(path, tiny_vit(depth=2)).metadata
    assert metadata_numbers(metadata, "mean") == (0.1, 0.2, 0.3)
    assert metadata_numbers(metadata, "std") is None


def test_a_path_may_start_at_home(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(state, tmp_path / "vit.safetensors")
    backbone = load_backbone("vit_tiny_patch16_224", "~/vit.safetensors", "none", options=SMALL)
    assert torch.equal(backbone.vit.state_dict()["pos_embed"], state["pos_embed"])


def refuse(path: Path, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match):
        load_backbone("vit_tiny_patch16_224", str(path), "none", options={**SMALL, **options})


def test_a_missing_key_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["blocks.1.mlp.fc1.bias"]
    save_file(state, path := tmp_path / "vit.safetensors")
    refuse(
        path,
        r"vit\.safetensors: lacks blocks\.1\.mlp\.fc1\.bias; the file does not fit .* \(32 wide, "
        r"2 blocks\)",
    )


def test_many_missing_keys_are_counted(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, path := tmp_path / "vit.safetensors")
    refuse(path, r"lacks blocks\.2\.\S+, blocks\.2\.\S+, blocks\.2\.\S+ and 9 more;", depth=3)


def test_an_unexpected_key_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state | {"reg_token": torch.zeros(1, 4, 32)}, path := tmp_path / "vit.safetensors")
    refuse(path, r"has unknown reg_token; the file does not fit the architecture")


def test_two_tensors_are_not_taken_for_one(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(
        prefixed(state, "backbone.") | {"norm.weight": torch.zeros(32)},
        path := tmp_path / "vit.safetensors",
    )
    refuse(path, r"has unknown norm\.weight beside backbone\.norm\.weight;")


def test_a_wrong_shape_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["norm.weight"] = torch.zeros(31)
    save_file(state, path := tmp_path / "vit.safetensors")
    refuse(path, r"has other shapes for norm\.weight; the file does not fit")


@pytest.mark.parametrize("changes", [{"embed_dim": 48}, {"embed_dim": 48, "img_size": 64}], ids=str)
def test_another_width(changes: dict[str, int], state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, path := tmp_path / "vit.safetensors")
    refuse(
        path,
        r"vit\.safetensors: .*does not fit the architecture backbone\.name \(48 wide, 2 blocks\)",
        **changes,
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html> 404: not found\n" * 9], ids=["empty", "text"]
)
def test_a_file_that_is_no_weight_file(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    refuse(path, rf"broken\{suffix}: not a readable weight file \(.+\); get the file again")


def test_half_a_download(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, path := tmp_path / "vit.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    refuse(path, r"not a readable weight file")


class Trap:
    """Unpickled with code allowed, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_code_in_a_file_is_refused_and_not_run(
    writer: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path, sprung = tmp_path / "evil.pth", tmp_path / "sprung"
    content = {"state_dict": state, "hook": Trap(sprung)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    refuse(
        path,
        r"evil\.pth: beside tensors it holds [\w.]+, which would have to be run, and only tensors "
        r"are read; get",
    )
    assert not sprung.exists()


def full_checkpoint(state: dict[str, Tensor], path: Path, **beside: Any) -> Path:
    """As DINO and iBOT save them: settings and a schedule's learning rate beside the tensors."""
    optimizer = {"param_groups": [{"lr": numpy.linspace(0, 1, 3)[1]}]}
    teacher = prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(3, 3)}
    torch.save(
        {
            "teacher": teacher,
            "optimizer": optimizer,
            "args": argparse.Namespace(arch="vit"),
            **beside,
        },
        path,
    )
    return path


def test_how_to_get_the_tensors_out_of_a_training_checkpoint(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    """The command in the message works, and what it writes is read."""
    path = full_checkpoint(state, tmp_path / "checkpoint.pth")
    with pytest.raises(
        UserError,
        match=r"beside tensors it holds .*; copy them .* python -c .*weights=tensors\.pth$",
    ) as error:
        load_backbone("vit_tiny_patch16_224", str(path), "none", options=SMALL)
    found = re.search(r"with (python -c \".*\") and give that", str(error.value))
    assert found, str(error.value)
    command = [sys.executable, *shlex.split(found[1])[1:]]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert_loads(tmp_path / "tensors.pth", state)


def test_the_command_runs_nothing_either(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = full_checkpoint(state, tmp_path / "checkpoint.pth", hook=Trap(tmp_path / "sprung"))
    with pytest.raises(UserError) as error:
        read_weights(path, tiny_vit(depth=2))
    found = re.search(r"with (python -c \".*\") and give that", str(error.value))
    assert found, str(error.value)
    done = subprocess.run(
        [sys.executable, *shlex.split(found[1])[1:]], cwd=tmp_path, capture_output=True, text=True
    )
    assert "mkdir" in done.stderr
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "tensors.pth").exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2)], ids=["list", "tensor"])
def test_tensors_without_names(content: object, tmp_path: Path) -> None:
    torch.save(content, path := tmp_path / "odd.pth")
    refuse(path, r"odd\.pth: holds a (list|Tensor), not a state dict of tensors")
