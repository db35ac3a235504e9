"""Which runs can be compared, and which are repeats of one another.

Two runs belong to one *benchmark* if they have the same images, tasks and backbone. Two runs of one
benchmark have the same *configuration* if their method settings are equal too: they then differ in
the seed, or in keys that do not change numbers (`identity.immaterial`). Tables, labels, reports and
the groups of W&B all follow these two definitions.

All functions read a run.json, given as plain values. Runs of older versions lack some entries, so
everything but `config` is optional.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from smope.config.config import with_defaults
from smope.config.identity import flatten, immaterial
from smope.config.signatures import chosen_name, takes

HASH_DIGITS = 12
# Keys of the backbone whose result run.json records: two ways to name the same weights are one.
RESOLVED_BACKBONE_KEYS = ("weights", "pixel_statistics", "mean", "std", "name", "_target_")


def deciding_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide numbers, by dotted key; missing ones have today's default."""
    flat = flatten(with_defaults(config))
    return {key: value for key, value in flat.items() if not immaterial(key, flat)}


def method_name(record: Mapping[str, Any]) -> str:
    """The name by which the run's method is chosen, such as `smope`."""
    return record.get("method") or chosen_name(record["config"]["method"]["_target_"])


def benchmark_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Images, tasks and backbone of a run, by key.

    Images and weights count by their hashes, wherever they were read from. A trial of a search has
    a benchmark of its own, because it sees only the first tasks.
    """
    settings = deciding_settings(record["config"])
    stream = record.get("stream", {})
    part = record.get("part", {})
    benchmark = {key: value for key, value in settings.items() if key.startswith("stream.")}
    if "name" in stream:
        benchmark["stream.name"] = stream["name"]
    benchmark["images"] = str(stream.get("content_hash", "not recorded"))[:HASH_DIGITS]
    benchmark["evaluated on"] = record.get("evaluated_on", "test")
    for key in ("first_tasks", "ranked_on"):
        if key in part:
            benchmark[f"part.{key}"] = part[key]
    return benchmark | _backbone_of(settings, record.get("backbone", {}))


def _backbone_of(settings: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the backbone, with what run.json recorded in the place of what it follows."""
    resolved = [f"backbone.{name}" for name in RESOLVED_BACKBONE_KEYS] if recorded else []
    backbone = {
        key: value
        for key, value in settings.items()
        if key.startswith("backbone.") and key not in resolved
    }
    for key in ("name", "mean", "std"):
        if key in recorded:
            backbone[f"backbone.{key}"] = recorded[key]
    if "sha256" in recorded:
        backbone["backbone.sha256"] = recorded["sha256"][:HASH_DIGITS]
    return backbone


def method_settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of method, trainer and, if the method uses one, router, by dotted key."""
    settings = deciding_settings(record["config"])
    groups = ["method", "trainer"]
    if takes(settings["method._target_"], "router"):
        groups.append("router")
    return {key: value for key, value in settings.items() if key.partition(".")[0] in groups}


def group_name(record: Mapping[str, Any]) -> str:
    """One name for all runs of a configuration, whatever their seed: `smope-digits-1a2b3c4d`."""
    benchmark = benchmark_of(record)
    text = json.dumps([benchmark, method_settings_of(record)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    stream = benchmark.get("stream.name", "stream")
    return f"{method_name(record)}-{stream}-{digest}"
