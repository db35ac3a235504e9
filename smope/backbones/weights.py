"""Finding and reading pretrained weights, with an identity that can be written down."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from smope.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded" / "glyph_vit.safetensors"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model", "model_state_dict", "teacher", "student")
PREFIXES = ("module.", "backbone.", "vit.")
CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class Weights:
    """A backbone's parameters by timm key, without a classification head.

    source: what the user named; sha256: of the file's bytes; metadata: text entries of a safetensors header.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> Weights:
    """Read a .safetensors file or a PyTorch checkpoint that holds tensors only (no pickled code is run)."""
    if not path.is_file():
        raise UserError(f"backbone.weights={path}: no such file; give the path of a {' / '.join(SUFFIXES)} file")
    metadata: Mapping[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        else:
            tensors = _unwrap(torch.load(path, map_location="cpu", weights_only=True), path)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"backbone.weights={path}: not a readable weight file ({reason}); get the file again"
        ) from error
    return Weights(_strip(tensors), str(path), file_sha256(path), metadata)


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    """The tensors inside the usual layers of training checkpoints, such as {'state_dict': {...}}."""
    while isinstance(loaded, dict):
        inner = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), dict)), None)
        if inner is None:
            return {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
        loaded = inner
    raise UserError(f"backbone.weights={path}: holds a {type(loaded).__name__}, not a state dict of tensors")


def _strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop wrapper prefixes that all backbone keys share, and classification heads."""
    for prefix in PREFIXES:
        if any(key.startswith(prefix) and ".blocks." in key for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return {key: value for key, value in tensors.items() if not key.startswith(("head.", "head_dist.", "fc_norm."))}


def hub_file(tag: str) -> Path:
    """The weight file of timm model `tag` from the local Hub cache, or else from the Hub."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(tag)
    if config is None or not config.hf_hub_id:
        raise UserError(f"backbone.name={tag}: timm knows no Hub weights for it; give backbone.weights=FILE")
    return _hub_download(tag, config.hf_hub_id, config.hf_hub_filename or "model.safetensors")


def _hub_download(tag: str, repository: str, filename: str) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, filename, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    host = urlparse(constants.ENDPOINT).hostname or ""
    way_out = f"get {filename} of {repository} where there is a network, and give its path: backbone.weights={filename}"
    if constants.HF_HUB_OFFLINE or not _reachable(host):
        raise UserError(f"backbone.weights=hub: {tag} is not in the Hub cache and {host} cannot be reached; {way_out}")
    try:
        return Path(hf_hub_download(repository, filename))
    except Exception as error:
        raise UserError(
            f"backbone.weights=hub: downloading {tag} failed ({type(error).__name__}); {way_out}"
        ) from error


def _reachable(host: str) -> bool:
    """One quick try, because the Hub client itself retries for most of a minute before it gives up."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    try:
        socket.create_connection((host, 443), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def metadata_numbers(metadata: Mapping[str, str], key: str) -> tuple[float, ...] | None:
    """A list of numbers stored as JSON in a safetensors header, or None."""
    return tuple(float(value) for value in json.loads(metadata[key])) if key in metadata else None
