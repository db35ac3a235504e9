"""Which keys decide the numbers of a run, which may change when it resumes, and which make runs
repeats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smope.config.ranges import CLASS_ORDERS, WEIGHT_KEYWORDS

GROUPS = ("backbone", "stream", "method", "router", "trainer", "tracker")
# Keys that hold a path, and the words that stand there instead of one.
PATHS = (
    ("stream", "root", ()),
    ("stream", "split_lists", ()),
    ("stream", "table", ()),
    ("stream", "cache_dir", ()),
    ("stream", "class_order", CLASS_ORDERS),
    ("backbone", "weights", WEIGHT_KEYWORDS),
)
# Where a run is kept and how it is watched, fed or saved does not change what it computes.
NOT_HASHED = ("run_dir", "resume", "tracker", "name")
NOT_HASHED_IN_STREAM = ("cache_gb", "cache_dir", "download")
NOT_HASHED_IN_TRAINER = (
    "device", "eval_batch_size", "num_workers", "activation_checkpointing", "gradient_accumulation_steps",
    "checkpoint_minutes", "checkpoint_steps", "record",
)  # fmt: skip
# A resumed run may have these changed: where things are (hashes tell whether they are the same) and
# how it is run.
MOVABLE = (
    *(f"{group}.{name}" for group, name, _ in PATHS),
    "stream.cache_gb",
    "stream.download",
    *(f"trainer.{name}" for name in NOT_HASHED_IN_TRAINER),
)
# Runs that differ in these alone are repeats of one another. What may be a keyword instead of a
# path is not among them, for keywords decide numbers. Which images they are, however found or
# split, is told by their content hash.
IMMATERIAL = {
    *NOT_HASHED,
    *(f"stream.{name}" for name in NOT_HASHED_IN_STREAM),
    *(f"trainer.{name}" for name in NOT_HASHED_IN_TRAINER),
    *MOVABLE,
    "seed", "stream.split_seed", "trainer.deterministic",
} - {f"{group}.{name}" for group, name, keywords in PATHS if keywords}  # fmt: skip


def may_move(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether a resumed run of these settings (dotted keys, see `flatten`) may have this key
    otherwise: see MOVABLE, and what it is called and who watches it.
    """
    return (key in MOVABLE or key.partition(".")[0] in ("name", "tracker")) and not decides_numbers(
        key, settings
    )


def immaterial(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether runs of these settings that differ in this key alone are repeats of one another: see
    IMMATERIAL.
    """
    return (key in IMMATERIAL or key.partition(".")[0] in IMMATERIAL) and not decides_numbers(
        key, settings
    )


def decides_numbers(key: str, settings: Mapping[str, Any]) -> bool:
    """Where test images see each other (method.authors_bug), the size of their batches decides
    numbers after all.
    """
    return key == "trainer.eval_batch_size" and settings.get("method.authors_bug", "none") != "none"


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Top-level keys and `group.key` for the groups' own; values inside stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in GROUPS and isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat
