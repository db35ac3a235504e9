"""Which file holds a backbone's weights: a path, the one in a folder, or the Hub's.

Heavy libraries are imported late, so that a wrong path is reported at once.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from smope.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz")
CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class AuthorsFile:
    """Weights that are not on the Hub.

    Attributes:
        where: Where the authors publish the file.
        mean: Pixel mean in training, for each channel.
        std: Pixel standard deviation in training, for each channel.
    """

    where: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Keys are names as timm would give them: architecture.tag.
AUTHORS_FILES = {
    "vit_base_patch16_224.ibot_in1k": AuthorsFile(
        "`backbone (t)` of ViT-B/16 under Pre-Trained Models in the README of "
        "github.com/bytedance/ibot, "
        "checkpoint_teacher.pth",
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
}


def weight_file(path: Path) -> Path:
    """`path` itself, or the only weight file in the folder `path`, such as a Hub snapshot.

    If a model is there twice, as model.safetensors and pytorch_model.bin, it is the safetensors
    file. UserError if there is no file, or several models.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"backbone.weights={path}: no such file or folder; give a {' / '.join(SUFFIXES)} file "
            f"or a folder with one"
        )
    candidates = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES and f.is_file())
    safe = {_model(f) for f in candidates if f.suffix == ".safetensors"}
    files = [f for f in candidates if f.suffix == ".safetensors" or _model(f) not in safe]
    if not files:
        raise UserError(
            f"backbone.weights={path}: no {' / '.join(SUFFIXES)} file in this folder; name the "
            f"file itself"
        )
    if len(files) > 1:
        raise UserError(
            f"backbone.weights={path}: this folder has {len(files)} weight files "
            f"({', '.join(f.name for f in files)}); "
            f"name one of them, for example backbone.weights={files[0]}"
        )
    return files[0]


def _model(file: Path) -> str:
    """The model's name in a file name; the Hub has the same as model and as pytorch_model."""
    return file.stem.replace("pytorch_model", "model")


def tags(name: str) -> str:
    """The names of all weights that timm has for the architecture of `name`, in one text."""
    import timm

    return ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))


def hub_file(name: str) -> Path:
    """The weight file of a timm model, `name` with its tag, from the Hub cache or the Hub.

    UserError if the Hub has no such file, or cannot be reached.
    """
    from timm.models import get_pretrained_cfg

    if name in AUTHORS_FILES:
        raise UserError(
            f"backbone.weights=hub: {name} is not on the Hub; get {AUTHORS_FILES[name].where}, "
            f"and give its path: "
            "backbone.weights=PATH"
        )
    if "." not in name and tags(name):
        raise UserError(
            f"backbone.name={name}: an architecture alone does not say which weights; name one of "
            f"{tags(name)}"
        )
    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UserError(
            f"backbone.name={name}: timm knows no Hub weights for it; give backbone.weights=FILE"
        )
    # The Hub has OpenAI's CLIP as a PyTorch file with the whole model, without model.safetensors.
    filenames = ["model.safetensors", "pytorch_model.bin"]
    if config.hf_hub_filename:
        filenames = [config.hf_hub_filename]
    elif config.tag == "openai":
        filenames = ["pytorch_model.bin"]
    return _hub_download(name, config.hf_hub_id, filenames)


def _hub_download(name: str, repository: str, filenames: list[str]) -> Path:
    """The first of `filenames` that the repository has; the cache comes before the network."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    for filename in filenames:
        with suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(repository, filename, local_files_only=True))
    way_out = (
        f"on a machine with a network run `hf download {repository} {filenames[0]} --local-dir "
        f"{name}`, "
        f"then give that file: backbone.weights={name}/{filenames[0]}"
    )
    hub = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE or not _reachable(hub):
        raise UserError(
            f"backbone.weights=hub: {name} is not in the Hub cache and {hub} cannot be reached; "
            f"{way_out}"
        )
    try:
        for filename in filenames[:-1]:
            try:
                return Path(hf_hub_download(repository, filename))
            except LocalEntryNotFoundError:  # an EntryNotFoundError too, but the Hub did not answer
                raise
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(repository, filenames[-1]))
    except Exception as error:
        raise UserError(
            f"backbone.weights=hub: downloading {name} failed ({type(error).__name__}); {way_out}"
        ) from error


def _reachable(url: str) -> bool:
    """Whether a connection to `url`, or to its proxy, opens within CONNECT_SECONDS.

    The Hub client itself retries for most of a minute. The attempt runs in a thread, because a name
    lookup without a server outlasts the timeout of a socket.
    """
    host, port = _address(url)
    proxy = "" if proxy_bypass(host) else getproxies().get(urlparse(url).scheme, "")
    address = _address(proxy) if proxy else (host, port)
    answers: list[bool] = []

    def attempt() -> None:
        with suppress(OSError):
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            answers.append(True)

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return bool(answers)


def _address(url: str) -> tuple[str, int]:
    parts = urlparse(url if "//" in url else f"http://{url}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
