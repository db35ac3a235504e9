"""Finding the weight file: a path, a folder, the Hub's cache, the Hub; and what is said where
there is none.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from safetensors.torch import save_file

from smope.backbones import files
from smope.backbones.files import hub_file, weight_file
from smope.backbones.vit import load_backbone
from smope.cli.main import main
from smope.errors import UserError
from tests.tiny import tiny_vit

TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["model.safetensors", "config.json", "README.md"], "model.safetensors"),
        (["pytorch_model.bin", "config.json"], "pytorch_model.bin"),
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["vit.pth", "vit.safetensors"], "vit.safetensors"),
        (["checkpoint_teacher.pth", "args.txt", "log.txt"], "checkpoint_teacher.pth"),
        (["B_16.npz"], "B_16.npz"),
    ],
    ids=str,
)
def test_the_one_file_of_a_folder(names: list[str], found: str, tmp_path: Path) -> None:
    assert weight_file(fill(tmp_path, *names)) == tmp_path / found
    assert weight_file(tmp_path / found) == tmp_path / found


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["checkpoint.pth", "checkpoint_teacher.pth"],
            r"2 weight files \(checkpoint\.pth, checkpoint_teacher\.pth\)",
        ),
        (
            ["model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors"],
            r"2 weight files \(model\.safeten",
        ),
        (["config.json"], r"no \.safetensors / .* file in this folder; name the file itself"),
        ([], r"no \.safetensors / .* file in this folder"),
    ],
    ids=str,
)
def test_a_folder_that_leaves_it_open(names: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "snapshots.pth").mkdir()
    with pytest.raises(
        UserError, match=rf"backbone\.weights={re.escape(str(tmp_path))}: .*{message}"
    ):
        weight_file(fill(tmp_path, *names))


def test_what_to_write_instead_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=rf"for example backbone\.weights={re.escape(str(tmp_path))}/a\.pth$",
    ):
        weight_file(fill(tmp_path, "b.pth", "a.pth"))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"missing\.pth: no such file or folder; give a \.safetensors / \.pth / "
    ):
        weight_file(tmp_path / "missing.pth")


def test_a_hub_snapshot_is_a_folder_of_links(tmp_path: Path) -> None:
    """The cache names its files by hash; what they are is said by the links in the snapshot."""
    save_file(tiny_vit(depth=2).state_dict(), tmp_path / "0123abc")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(tmp_path / "0123abc")
    identity = load_backbone("vit_tiny_patch16_224", str(snapshot), "none", options=SMALL).identity
    assert identity.source == str(snapshot / "model.safetensors")
    assert identity.sha256 == hashlib.sha256((tmp_path / "0123abc").read_bytes()).hexdigest()


class Hub:
    """In place of the Hub client: what the cache holds and what the Hub has, by file name;
    remembers the downloads.
    """

    def __init__(self, cached: dict[str, Path], online: dict[str, Path] | None) -> None:
        self.cached = cached
        self.online = online
        self.downloads: list[str] = []

    def __call__(self, repository: str, filename: str, local_files_only: bool = False) -> str:
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

        if local_files_only:
            if filename not in self.cached:
                raise LocalEntryNotFoundError("not in the cache")
            return str(self.cached[filename])
        self.downloads.append(f"{repository}/{filename}")
        if self.online is None:
            raise ConnectionError("broken off")
        if filename not in self.online:
            raise EntryNotFoundError("404")
        return str(self.online[filename])


@pytest.fixture
def use_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def use(
        cached: dict[str, Path] | None = None,
        *,
        online: dict[str, Path] | None = None,
        offline: bool = False,
        reached: bool = True,
    ) -> Hub:
        hub = Hub(cached or {}, online)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(files, "_reachable", lambda _url: reached)
        return hub

    return use


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_the_hub_cache_is_used_without_a_network(
    filename: str, tmp_path: Path, use_hub: Callable[..., Hub]
) -> None:
    hub = use_hub({filename: tmp_path / filename}, offline=True)
    assert hub_file(TAG) == tmp_path / filename
    assert hub.downloads == []


def test_weights_of_the_hub(tmp_path: Path, use_hub: Callable[..., Hub]) -> None:
    save_file(tiny_vit(depth=2).state_dict(), path := tmp_path / "model.safetensors")
    use_hub({path.name: path})
    identity = load_backbone(TAG, options=SMALL).identity
    assert (identity.source, identity.sha256) == (
        f"hub:{TAG}",
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    assert identity.mean == identity.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("state_of_things", [{"offline": True}, {"reached": False}], ids=str)
@pytest.mark.parametrize(
    ("name", "repository", "filename"),
    [
        (TAG, f"timm/{TAG}", "model.safetensors"),
        (
            "vit_base_patch14_dinov2.lvd142m",
            "timm/vit_base_patch14_dinov2.lvd142m",
            "model.safetensors",
        ),
        (CLIP, "timm/vit_base_patch16_clip_224.openai", "pytorch_model.bin"),
    ],
)
def test_offline_nothing_is_tried(
    name: str,
    repository: str,
    filename: str,
    state_of_things: dict[str, bool],
    use_hub: Callable[..., Hub],
) -> None:
    hub = use_hub(**state_of_things)
    command = re.escape(f"`hf download {repository} {filename} --local-dir {name}`")
    given = re.escape(f"backbone.weights={name}/{filename}")
    with pytest.raises(
        UserError,
        match=rf"weights=hub: {name} is not in the Hub cache .*cannot be reached; "
        rf".*{command}.*{given}$",
    ):
        hub_file(name)
    assert hub.downloads == [], "the client would try again and again for most of a minute"


def test_online_it_downloads(tmp_path: Path, use_hub: Callable[..., Hub]) -> None:
    there = {name: tmp_path / name for name in ("model.safetensors", "pytorch_model.bin")}
    hub = use_hub(online=there)
    assert hub_file(TAG) == there["model.safetensors"]
    assert hub.downloads == [f"timm/{TAG}/model.safetensors"]


def test_a_repository_without_a_safetensors_file(
    tmp_path: Path, use_hub: Callable[..., Hub]
) -> None:
    hub = use_hub(online={"pytorch_model.bin": tmp_path / "pytorch_model.bin"})
    assert hub_file(TAG) == tmp_path / "pytorch_model.bin"
    assert hub_file(CLIP) == tmp_path / "pytorch_model.bin"
    assert hub.downloads[2:] == ["timm/vit_base_patch16_clip_224.openai/pytorch_model.bin"]


@pytest.mark.parametrize(
    ("online", "kind"), [(None, "ConnectionError"), ({}, "EntryNotFoundError")], ids=str
)
def test_a_download_that_fails(online: Any, kind: str, use_hub: Callable[..., Hub]) -> None:
    use_hub(online=online)
    with pytest.raises(
        UserError,
        match=rf"downloading {TAG} failed \({kind}\); .*`hf download .*backbone\.weights=",
    ):
        hub_file(TAG)


def test_a_hub_that_does_not_answer_is_waited_for_once(
    use_hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import LocalEntryNotFoundError

    hub = use_hub(online={})

    def no_answer(repository: str, filename: str, local_files_only: bool = False) -> str:
        if not local_files_only:
            hub.downloads.append(filename)
        raise LocalEntryNotFoundError("no answer in time")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_answer)
    with pytest.raises(UserError, match=r"failed \(LocalEntryNotFoundError\); on a machine with"):
        hub_file(TAG)
    assert hub.downloads == ["model.safetensors"]


def test_a_model_without_hub_weights() -> None:
    with pytest.raises(
        UserError, match=r"vit_small_patch16_18x2_224: timm knows no Hub weights .*weights=FILE"
    ):
        hub_file("vit_small_patch16_18x2_224")


@pytest.mark.parametrize("statistics", ["own", "none"])
def test_an_architecture_alone_names_no_weights(
    statistics: Any, use_hub: Callable[..., Hub]
) -> None:
    use_hub()
    choices = ("augreg2_in21k_ft_in1k", "augreg_in21k", "dino", "mae", "orig_in21k")
    expected = ".*".join(rf"vit_base_patch16_224\.{tag}\b" for tag in choices)
    with pytest.raises(
        UserError,
        match=rf"name=vit_base_patch16_224: an architecture alone .*name one of .*{expected}",
    ):
        load_backbone("vit_base_patch16_224", "hub", statistics, options={"depth": 1})


@pytest.mark.parametrize("weights", ["hub", "random"])
def test_an_old_name(weights: str) -> None:
    new = r"vit_base_patch16_224\.augreg_in21k"
    with pytest.raises(
        UserError, match=rf"_in21k is timm's old name for {new}; write backbone\.name={new}$"
    ):
        load_backbone("vit_base_patch16_224_in21k", weights, options={"depth": 1})


def test_weights_that_only_their_authors_have() -> None:
    with pytest.raises(
        UserError,
        match=r"ibot_in1k is not on the Hub; get "
        r".*bytedance/ibot.*checkpoint_teacher\.pth.*weights=PATH",
    ):
        load_backbone("vit_base_patch16_224.ibot_in1k", options={"depth": 1})


def test_a_tag_that_timm_does_not_know() -> None:
    with pytest.raises(
        UserError, match=r"vit_tiny_patch16_224\.nonsense: .*Invalid pretrained tag \(nonsense\)"
    ):
        load_backbone("vit_tiny_patch16_224.nonsense", options=SMALL)


def test_the_command_says_what_to_do_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real client and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(files, "_reachable", lambda url: pytest.fail(f"{url} was tried"))
    assert main(["train", "backbone=vit_tiny", f"run_dir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "backbone.weights=" in line
    assert f"hf download timm/{TAG} model.safetensors" in line
    assert not (tmp_path / "run").exists()


PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy")


@pytest.mark.parametrize(
    ("url", "environment", "address"),
    [
        ("https://hub.example", {}, ("hub.example", 443)),
        ("http://hub.example:8080", {}, ("hub.example", 8080)),
        (
            "https://hub.example",
            {"https_proxy": "http://proxy.example:3128"},
            ("proxy.example", 3128),
        ),
        ("https://hub.example", {"https_proxy": "proxy.example"}, ("proxy.example", 80)),
        (
            "https://hub.example",
            {"https_proxy": "http://p", "no_proxy": "hub.example"},
            ("hub.example", 443),
        ),
    ],
    ids=str,
)
def test_one_quick_try_of_what_is_asked_first(
    url: str, environment: dict[str, str], address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[Any, float]] = []

    def refused(address: Any, timeout: float) -> socket.socket:
        tried.append((address, timeout))
        raise ConnectionRefusedError

    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(socket, "create_connection", refused)
    assert not files._reachable(url)
    assert tried == [(address, files.CONNECT_SECONDS)]


def test_a_host_that_answers_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert files._reachable(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = Event()

    def wait(*_: Any, **__: Any) -> socket.socket:
        answered.wait()
        raise TimeoutError

    monkeypatch.setattr(files, "CONNECT_SECONDS", 0.05)
    monkeypatch.setattr(socket, "create_connection", wait)
    assert not files._reachable("https://hub.example")
    answered.set()
