"""The images of a configuration's stream. Not in build.py, so that `smope data` imports no
torch.
"""

from __future__ import annotations

from hydra.utils import get_object

from smope.config.config import STREAM_BUILDER, Config
from smope.config.signatures import keys_of
from smope.streams.source import Source


def make_source(config: Config) -> Source:
    """Find the images on disk; none is decoded."""
    common = keys_of(STREAM_BUILDER, "stream")
    arguments = {
        key: value
        for key, value in config.stream.items()
        if key not in ("_target_", "name", *common)
    }
    return get_object(config.stream["_target_"])(**arguments)
