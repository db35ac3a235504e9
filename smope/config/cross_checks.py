"""Rules beyond the type and range of one key: keys that must agree, and files that must exist."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from smope.backbones.files import weight_file
from smope.backbones.options import check_options
from smope.backbones.patches import check_image_size, patch_side
from smope.config.signatures import Key, chosen_name, class_attribute
from smope.config.value_types import shown
from smope.declare.balance import LOSSES, RouterFacts, obstacle
from smope.declare.collapse import SETTINGS, no_effect
from smope.declare.placement import placement_obstacle
from smope.errors import UserError


def check_values(flat: Mapping[str, Any], keys: Mapping[str, Key]) -> None:
    """Hold typed values to their constraints, and then to the rules of this file.

    Args:
        flat: Values by dotted key; null keeps every constraint.
        keys: The declaration of each key.

    Raises:
        UserError: one for all that is wrong. Keys that must agree, and files, are looked at only if
            every value keeps its own constraints.
    """
    check_constraints(flat, keys)
    checks = (
        _top_k,
        _balance,
        _collapse,
        _whole_batch,
        _placement,
        _tasks,
        _options,
        _image_size,
        _class_order,
        _statistics,
        _weights,
        _root,
    )
    _check_all(partial(check, flat, keys) for check in checks)


def check_constraints(flat: Mapping[str, Any], keys: Mapping[str, Key]) -> None:
    """Hold each typed value to its own constraints.

    Args:
        flat: Values by dotted key; null keeps every constraint.
        keys: The declaration of each key.

    Raises:
        UserError: one for all that is wrong.
    """
    _check_all(partial(key.check, name, flat.get(name)) for name, key in keys.items())


def _check_all(checks: Iterable[Callable[[], object]]) -> None:
    """Make every check; one UserError with the messages of all that failed."""
    messages = []
    for check in checks:
        try:
            check()
        except UserError as error:
            messages.append(str(error))
    if messages:
        raise UserError("; and ".join(messages))


def _keywords(name: str, keys: Mapping[str, Key]) -> tuple[str, ...]:
    """The words that may stand in place of a path."""
    path = keys[name].path if name in keys else None
    return path.keywords if path else ()


def _top_k(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
    top_k, num_experts = flat.get("router.top_k"), flat.get("method.num_experts")
    if top_k is not None and num_experts is not None and top_k > num_experts:
        raise UserError(
            f"router.top_k must be in 1..method.num_experts={num_experts}, got {top_k}; "
            f"write router.top_k={num_experts} or less, or method.num_experts={top_k} or more"
        )


def _balance(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
    target, num_experts = flat.get("router._target_"), flat.get("method.num_experts")
    if target is None or num_experts is None:
        return
    supported = class_attribute(target, "balance_losses") or ()
    name = chosen_name(target)
    router = RouterFacts(name, supported, flat.get("router.top_k") or 0, flat.get("router.noise"))
    for loss in LOSSES:
        key = f"method.{loss}_loss_weight"
        problem = obstacle(loss, router, num_experts) if flat.get(key) else ""
        if problem:
            raise UserError(f"{key}={shown(flat[key])}: {problem}; or write {key}=0")


def _collapse(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
    target = flat.get("router._target_")
    if target is None:
        return
    name, sparse = chosen_name(target), class_attribute(target, "sparse")
    for setting in SETTINGS:
        value = flat.get(f"method.{setting}")
        problem = value and no_effect(setting, name, sparse is not False, flat["router.top_k"])
        if problem:
            raise UserError(f"method.{setting}={shown(value)}: {problem}")


def _whole_batch(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
    parts, target = flat.get("trainer.gradient_accumulation_steps"), flat.get("router._target_")
    if parts is None or parts == 1 or "method.num_experts" not in flat or target is None:
        return
    if class_attribute(target, "couples_batch"):
        raise UserError(
            f"trainer.gradient_accumulation_steps={parts}: router={chosen_name(target)} divides "
            f"the images of a whole batch among experts; write "
            f"trainer.gradient_accumulation_steps=1, or choose another router"
        )


def _placement(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
    placement, target = flat.get("method.placement", "prefix"), flat.get("router._target_")
    if target is None:
        return
    problem = placement_obstacle(
        placement,
        chosen_name(target),
        reads_tokens=bool(class_attribute(target, "reads_tokens")),
        sparse=class_attribute(target, "sparse") is not False,
        similarity_loss=bool(flat.get("method.similarity_loss_weight")),
    )
    if problem:
        raise UserError(problem)


def _tasks(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
    sizes, num_tasks = flat.get("stream.classes_per_task"), flat["stream.num_tasks"]
    if isinstance(sizes, list) and len(sizes) != num_tasks:
        raise UserError(
            f"stream.classes_per_task={shown(sizes)} is {len(sizes)} tasks, but "
            f"stream.num_tasks={num_tasks}"
            "; leave stream.num_tasks out or make them agree"
        )


def _options(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
    check_options(flat.get("backbone.options") or {})


def _image_size(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
    name, size = flat.get("backbone.name"), flat.get("backbone.image_size")
    patch = patch_side(name or "", flat.get("backbone.options") or {})
    if size is not None and patch is not None and patch > 0:
        check_image_size(size, patch)


def _class_order(flat: Mapping[str, Any], keys: Mapping[str, Key]) -> None:
    order, keywords = flat.get("stream.class_order"), _keywords("stream.class_order", keys)
    if isinstance(order, list) and (not order or len(set(order)) != len(order)):
        raise UserError(
            f"stream.class_order must name each class once, got {shown(order)}; write every class "
            f"id or name, "
            "or stream.class_order=paper"
        )
    if isinstance(order, str) and order not in keywords and not Path(order).is_file():
        close = difflib.get_close_matches(order, keywords, n=1, cutoff=0.7)
        way_out = f"did you mean {close[0]}?" if close else "check the path"
        raise UserError(
            f"stream.class_order={order}: no such file; it must be one of "
            f"{', '.join(keywords)}, a list, or a "
            f"file with one class a line: {way_out}"
        )


def _statistics(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
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


def _weights(flat: Mapping[str, Any], keys: Mapping[str, Key]) -> None:
    weights, keywords = flat.get("backbone.weights"), _keywords("backbone.weights", keys)
    if not keywords or weights is None or weights in keywords:
        return
    if not Path(weights).exists():
        close = difflib.get_close_matches(weights, keywords, n=1, cutoff=0.7)
        way_out = f"did you mean {close[0]}?" if close else "check the path"
        raise UserError(
            f"backbone.weights={weights}: no such file or folder; it must be one of "
            f"{', '.join(keywords)}, "
            f"a weight file, or a folder with one: {way_out}"
        )
    weight_file(Path(weights))


def _root(flat: Mapping[str, Any], _: Mapping[str, Key]) -> None:
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
