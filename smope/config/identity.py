"""Which keys decide the numbers of a run, which may change when it resumes, and which do not make
two runs different.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smope.config.conf_files import GROUPS
from smope.config.schema import find_key
from smope.declare.balance import LOSSES
from smope.declare.texts import PathTo

# Where a run is kept, how it is watched and how it is computed does not change its numbers.
NOT_HASHED = ("run_dir", "resume", "tracker", "name")
NOT_HASHED_IN_STREAM = ("cache_gb", "cache_dir", "download", "exclude")
NOT_HASHED_IN_TRAINER = (
    "device",
    "eval_batch_size",
    "num_workers",
    "images_on_device",
    "activation_checkpointing",
    "gradient_accumulation_steps",
    "checkpoint_minutes",
    "checkpoint_steps",
    "record",
    "reference",
    "keep",
)
# Keys that came later, by class: at these values they change nothing, and they are not hashed, so
# that the hashes of earlier runs remain.
NO_BALANCE_LOSSES = {f"{name}_loss_weight": 0.0 for name in LOSSES}
NOTHING_AGAINST_COLLAPSE = {"similarity_loss_weight": 0.0, "expert_dropout": 0.0}
IN_ATTENTION = {"placement": "prefix", "rank": 4}
EXPERTS_REST = {
    "later_epochs_factor": 0,
    "later_rate_factor": 0.3,
    "stored_features": 100,
    "drift_penalty": 1.0,
}
ADDED_LATER: Mapping[str, Mapping[str, Any]] = {
    "smope.methods.smope.SMoPE": {
        **NO_BALANCE_LOSSES,
        **NOTHING_AGAINST_COLLAPSE,
        **IN_ATTENTION,
        "reinitialise_unused": False,
    },
    "smope.methods.smope_plus.SMoPEPlus": {
        **NO_BALANCE_LOSSES,
        **NOTHING_AGAINST_COLLAPSE,
        **IN_ATTENTION,
        **EXPERTS_REST,
    },
    "smope.streams.folder.load": {"test_fraction": 0.2, "split_seed": 0},
    "smope.streams.table.load": {"test_fraction": 0.2},
}
# A resumed run may change these, and every path: hashes say whether the files are the same.
MOVABLE = {
    "stream.cache_gb",
    "stream.download",
    *(f"trainer.{name}" for name in NOT_HASHED_IN_TRAINER),
}
# Runs that differ in these alone, or in paths, are repeats of one another. Which images a run had,
# however they were found or split, is known by their content hash.
IMMATERIAL = {
    *NOT_HASHED,
    *(f"stream.{name}" for name in NOT_HASHED_IN_STREAM),
    *MOVABLE,
    "seed",
    "stream.split_seed",
    "stream.test_fraction",
    "trainer.deterministic",
}


def path_of(key: str, settings: Mapping[str, Any]) -> PathTo | None:
    """What makes a key of a group a path; None if it is none.

    Args:
        key: The dotted key.
        settings: The run's values by dotted key, see `flatten`.
    """
    declared_key = find_key(key, settings) if "." in key else None
    return declared_key.path if declared_key else None


def may_move(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether a resumed run may change a key: see MOVABLE. Name and tracker may change too.

    Args:
        key: The dotted key.
        settings: The run's values by dotted key, see `flatten`.
    """
    if decides_numbers(key, settings):
        return False
    named = key in MOVABLE or key.partition(".")[0] in ("name", "tracker")
    return named or path_of(key, settings) is not None


def immaterial(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether runs that differ in a key alone are repeats of one another: see IMMATERIAL.

    A path that may be a keyword instead is material, for keywords decide numbers.

    Args:
        key: The dotted key.
        settings: The run's values by dotted key, see `flatten`.
    """
    if decides_numbers(key, settings):
        return False
    if key in IMMATERIAL or key.partition(".")[0] in IMMATERIAL:
        return True
    path = path_of(key, settings)
    return path is not None and not path.keywords


def decides_numbers(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether a key that usually changes no number does so with these settings.

    If test images see each other (method.authors_bug), the size of their batches decides numbers.
    Files that are excluded do; an empty list excludes none.

    Args:
        key: The dotted key.
        settings: The run's values by dotted key, see `flatten`.
    """
    if key == "stream.exclude":
        return bool(settings.get(key))
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
