"""Every way in which weights arrive in a file, and every way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from smope.backbones import weights
from smope.backbones.vit import load_backbone
from smope.backbones.weights import hub_file, metadata_numbers, read_weights
from smope.cli import main
from smope.errors import UserError
from tests.tiny import tiny_vit

TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def state() -> dict[str, Tensor]:
    """The weights of a small ViT without a classification head."""
    return dict(tiny_vit(seed=6, depth=2).state_dict())


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "state dict": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "teacher's backbone": lambda state: {
        "student": {"backbone.cls_token": torch.zeros(1)},
        "teacher": prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(3, 3)},
    },
    "module.": lambda state: prefixed(state, "module."),
    "module.backbone.": lambda state: {"state_dict": prefixed(state, "module.backbone.")},
    "with a head": lambda state: state | {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)},
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
    assert_loads(path, state, **({"rtol": 1e-3, "atol": 1e-6} if layout == "half precision" else {}))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "vit."])
def test_safetensors(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(prefixed(state, prefix), path, {"mean": "[0.1, 0.2, 0.3]"})
    assert_loads(path, state)
    metadata = read_weights(path).metadata
    assert metadata_numbers(metadata, "mean") == (0.1, 0.2, 0.3)
    assert metadata_numbers(metadata, "std") is None


def test_a_path_may_start_at_home(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    refuse(path, r"vit\.safetensors: lacks blocks\.1\.mlp\.fc1\.bias; the file does not fit .* \(32 wide, 2 blocks\)")


def test_many_missing_keys_are_counted(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, path := tmp_path / "vit.safetensors")
    refuse(path, r"lacks blocks\.2\.\S+, blocks\.2\.\S+, blocks\.2\.\S+ and 9 more;", depth=3)


def test_an_unexpected_key_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state | {"reg_token": torch.zeros(1, 4, 32)}, path := tmp_path / "vit.safetensors")
    refuse(path, r"has unknown reg_token; the file does not fit the architecture")


def test_a_wrong_shape_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["norm.weight"] = torch.zeros(31)
    save_file(state, path := tmp_path / "vit.safetensors")
    refuse(path, r"has other shapes for norm\.weight; the file does not fit")


@pytest.mark.parametrize("changes", [{"embed_dim": 48}, {"embed_dim": 48, "img_size": 64}], ids=str)
def test_another_width(changes: dict[str, int], state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, path := tmp_path / "vit.safetensors")
    refuse(path, r"vit\.safetensors: .*does not fit the architecture backbone\.name \(48 wide, 2 blocks\)", **changes)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html> 404: not found\n" * 9], ids=["empty", "text"])
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
def test_code_in_a_file_is_refused_and_not_run(writer: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path, sprung = tmp_path / "evil.pth", tmp_path / "sprung"
    content = {"state_dict": state, "hook": Trap(sprung)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    refuse(path, r"evil\.pth: not a readable weight file")
    assert not sprung.exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2)], ids=["list", "tensor"])
def test_tensors_without_names(content: object, tmp_path: Path) -> None:
    torch.save(content, path := tmp_path / "odd.pth")
    refuse(path, r"odd\.pth: holds a (list|Tensor), not a state dict of tensors")


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_no_such_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; give the path of a \.safetensors / \.pth / "):
        read_weights(tmp_path / name)


class Hub:
    """In place of the Hub client: an empty cache, or one with `file`; remembers whether the network was asked."""

    def __init__(self, file: Path | None = None, online: Path | None = None) -> None:
        self.file = file
        self.online = online
        self.downloads = 0

    def __call__(self, repository: str, filename: str, local_files_only: bool = False) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        if self.file is None and local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        if not local_files_only:
            self.downloads += 1
        if self.file is None and self.online is None:
            raise ConnectionError("broken off")
        return str(self.file or self.online)


@pytest.fixture
def use_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def use(
        file: Path | None = None, *, online: Path | None = None, offline: bool = False, reached: bool = True
    ) -> Hub:
        hub = Hub(file, online)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(weights, "_reachable", lambda _host: reached)
        return hub

    return use


def test_the_hub_cache_is_used_without_a_network(
    state: dict[str, Tensor], tmp_path: Path, use_hub: Callable[..., Hub]
) -> None:
    save_file(state, path := tmp_path / "model.safetensors")
    hub = use_hub(path, offline=True)
    backbone = load_backbone(TAG, options=SMALL)
    assert (backbone.identity.source, hub.downloads) == (f"hub:{TAG}", 0)
    assert backbone.identity.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert backbone.identity.mean == backbone.identity.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("state_of_things", [{"offline": True}, {"reached": False}], ids=str)
def test_offline_nothing_is_tried(state_of_things: dict[str, bool], use_hub: Callable[..., Hub]) -> None:
    hub = use_hub(**state_of_things)
    with pytest.raises(
        UserError, match=rf"weights=hub: {TAG} is not in the Hub cache .*cannot be reached; get \S+ of "
    ):
        hub_file(TAG)
    assert hub.downloads == 0, "the client would try again and again for most of a minute"


def test_online_it_downloads(tmp_path: Path, use_hub: Callable[..., Hub]) -> None:
    hub = use_hub(online=tmp_path / "model.safetensors")
    assert hub_file(TAG) == tmp_path / "model.safetensors"
    assert hub.downloads == 1


def test_a_download_that_fails(use_hub: Callable[..., Hub]) -> None:
    use_hub()
    with pytest.raises(UserError, match=rf"downloading {TAG} failed \(ConnectionError\); .*backbone\.weights="):
        hub_file(TAG)


def test_a_model_without_hub_weights() -> None:
    with pytest.raises(UserError, match=r"vit_small_patch16_18x2_224: timm knows no Hub weights .*weights=FILE"):
        hub_file("vit_small_patch16_18x2_224")


def test_a_tag_that_timm_does_not_know() -> None:
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224\.nonsense: .*Invalid pretrained tag \(nonsense\)"):
        load_backbone("vit_tiny_patch16_224.nonsense", options=SMALL)


def test_the_command_says_what_to_do_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real client and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "_reachable", lambda host: pytest.fail(f"{host} was tried"))
    assert main(["train", "backbone=vit_tiny", f"run_dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "backbone.weights=" in line
    assert TAG in line
    assert not (tmp_path / "run").exists()


def test_one_quick_try_tells_whether_a_host_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[Any, float]] = []

    def refused(address: Any, timeout: float) -> socket.socket:
        tried.append((address, timeout))
        raise ConnectionRefusedError

    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refused)
    assert not weights._reachable("hub.example")
    assert tried == [(("hub.example", 443), weights.CONNECT_SECONDS)]
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    assert weights._reachable("hub.example"), "a proxy decides that, not a direct connection"
