"""The images of a configuration's stream. Not in build.py, so that `smope data` imports no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from smope.config.config import Config
from smope.config.schema import STREAM_BUILDER
from smope.config.signatures import keys_of
from smope.streams.source import Source


def make_source(config: Config) -> Source:
    """Find the images on disk; none is decoded."""
    shared = ("name", *keys_of(STREAM_BUILDER, "stream"))
    own_keys = {key: value for key, value in config.stream.items() if key not in shared}
    return get_object(config.stream["_target_"])(**arguments(own_keys))


def arguments(group: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a group of a configuration stands for.

    A path is text in the configuration; where the signature says `Path`, it becomes one.
    """
    keys = keys_of(group["_target_"], "_target_")
    values = {name: value for name, value in group.items() if name != "_target_"}
    for name in keys.keys() & values.keys():
        if keys[name].is_path_object and isinstance(values[name], str):
            values[name] = Path(values[name])
    return values
