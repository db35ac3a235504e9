"""Which runs of a sweep take the same work, so that one of them is planned for all. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smope.config.config import Config
from smope.config.identity import flatten, immaterial
from smope.config.value_types import shown

# These do not decide about a run's results, but about its time and memory.
WORK_KEYS = (
    "trainer.device",
    "trainer.images_on_device",
    "trainer.record",
    "trainer.activation_checkpointing",
    "stream.root",
    "stream.table",
)


def work_key(config: Config) -> str:
    """The settings that decide how much a run computes, as one text."""
    flat: Mapping[str, Any] = flatten(config.as_dict())
    return shown(
        [
            f"{key}={shown(value)}"
            for key, value in flat.items()
            if not immaterial(key, flat) or key in WORK_KEYS
        ]
    )
