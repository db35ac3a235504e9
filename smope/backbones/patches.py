"""Patches must cover an image completely. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from smope.errors import UserError


def patch_side(name: str, options: Mapping[str, Any]) -> int | None:
    """Side of a patch in pixels.

    Args:
        name: A timm model, such as vit_base_patch16_224.
        options: Further arguments of timm.create_model, which come before the name.

    Returns:
        None if neither gives it.
    """
    given, named = options.get("patch_size"), re.search(r"_patch(\d+)_", name)
    if isinstance(given, list | tuple) and len(set(given)) == 1:
        given = given[0]
    if isinstance(given, int):
        return given
    return int(named[1]) if named and given is None else None


def check_image_size(size: int, patch: int, key: str = "backbone.image_size") -> None:
    """UserError unless patches cover an image; timm would ignore its right and lower edge.

    Args:
        size: Side of the image in pixels.
        patch: Side of a patch in pixels.
        key: The configuration key of the size.
    """
    if size % patch or size < patch:
        fitting = patch * max(1, round(size / patch))
        raise UserError(
            f"{key} must be a multiple of the patch size {patch}, got {size}; "
            f"write for example {key}={fitting}"
        )
