"""Rules that need neither backbone nor data: ranges, files that exist, keys that must agree."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from smope.backbones.files import weight_file
from smope.backbones.patches import check_image_size, patch_side
from smope.config.ranges import CLASS_ORDERS, RULES, WEIGHT_KEYWORDS, check_rule
from smope.config.value_types import shown
from smope.errors import UserError


def check_rules(flat: Mapping[str, Any]) -> None:
    """Hold typed values, by dotted key, to every rule; one UserError for all that are broken. null
    passes.

    Keys that must agree, and files, are looked at where every key is in its range.
    """
    _all_hold(partial(check_rule, key, flat.get(key)) for key in RULES)
    checks = (_top_k, _tasks, _image_size, _class_order, _statistics, _weights, _root)
    _all_hold(partial(check, flat) for check in checks)


def _all_hold(checks: Iterable[Callable[[], object]]) -> None:
    """Make every check; a UserError with all that they said."""
    said = []
    for check in checks:
        try:
            check()
        except UserError as error:
            said.append(str(error))
    if said:
        raise UserError("; and ".join(said))


def _top_k(flat: Mapping[str, Any]) -> None:
    top_k, num_experts = flat.get("router.top_k"), flat.get("method.num_experts")
    if top_k is not None and num_experts is not None and top_k > num_experts:
        raise UserError(
            f"router.top_k must be in 1..method.num_experts={num_experts}, got {top_k}; "
            f"write router.top_k={num_experts} or less, or method.num_experts={top_k} or more"
        )


def _tasks(flat: Mapping[str, Any]) -> None:
    sizes, num_tasks = flat.get("stream.classes_per_task"), flat["stream.num_tasks"]
    if isinstance(sizes, list) and len(sizes) != num_tasks:
        raise UserError(
            f"stream.classes_per_task={shown(sizes)} is {len(sizes)} tasks, but "
            f"stream.num_tasks={num_tasks}"
            "; leave stream.num_tasks out or make them agree"
        )


def _image_size(flat: Mapping[str, Any]) -> None:
    name, size = flat.get("backbone.name"), flat.get("backbone.image_size")
    patch = patch_side(name or "", flat.get("backbone.options") or {})
    if size is not None and patch is not None:
        check_image_size(size, patch)


def _class_order(flat: Mapping[str, Any]) -> None:
    order = flat.get("stream.class_order")
    if isinstance(order, list) and (not order or len(set(order)) != len(order)):
        raise UserError(
            f"stream.class_order must name each class once, got {shown(order)}; write every class "
            f"id or name, "
            "or stream.class_order=paper"
        )
    if isinstance(order, str) and order not in CLASS_ORDERS and not Path(order).is_file():
        close = difflib.get_close_matches(order, CLASS_ORDERS, n=1, cutoff=0.7)
        way_out = f"did you mean {close[0]}?" if close else "check the path"
        raise UserError(
            f"stream.class_order={order}: no such file; it must be one of "
            f"{', '.join(CLASS_ORDERS)}, a list, or a "
            f"file with one class a line: {way_out}"
        )


def _statistics(flat: Mapping[str, Any]) -> None:
    kind = flat.get("backbone.pixel_statistics")
    set_keys = [key for key in ("backbone.mean", "backbone.std") if flat.get(key) is not None]
    if kind == "given" and len(set_keys) < 2:
        raise UserError(
            "backbone.pixel_statistics=given needs backbone.mean and backbone.std, three numbers "
            "each; "
            "write backbone.mean=[0.5,0.5,0.5] backbone.std=[0.5,0.5,0.5]"
        )
    if kind not in (None, "given") and set_keys:
        raise UserError(
            f"{set_keys[0]}={shown(flat[set_keys[0]])} has no effect with "
            f"backbone.pixel_statistics={kind}; "
            "add backbone.pixel_statistics=given or leave it out"
        )


def _weights(flat: Mapping[str, Any]) -> None:
    weights = flat.get("backbone.weights")
    if weights is None or weights in WEIGHT_KEYWORDS:
        return
    if not Path(weights).exists():
        close = difflib.get_close_matches(weights, WEIGHT_KEYWORDS, n=1, cutoff=0.7)
        way_out = f"did you mean {close[0]}?" if close else "check the path"
        raise UserError(
            f"backbone.weights={weights}: no such file or folder; it must be one of "
            f"{', '.join(WEIGHT_KEYWORDS)}, "
            f"a weight file, or a folder with one: {way_out}"
        )
    weight_file(Path(weights))


def _root(flat: Mapping[str, Any]) -> None:
    root = flat.get("stream.root")
    if root is None or Path(root).is_dir():
        return
    if Path(root).exists():
        raise UserError(
            f"stream.root={root}: is a file; it must be the folder that holds the images: check "
            f"the path"
        )
    if not flat.get("stream.download"):
        fetch = (
            ", or add stream.download=true to fetch the data there"
            if "stream.download" in flat
            else ""
        )
        raise UserError(
            f"stream.root={root}: no such folder; it must be the folder that holds the images: "
            f"check the path{fetch}"
        )
