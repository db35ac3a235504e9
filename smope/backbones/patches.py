"""Images are cut into patches that leave nothing over. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from smope.errors import UserError


def patch_side(name: str, options: Mapping[str, Any]) -> int | None:
    """Pixels of a patch's side, as the options or the name of a timm model say; None where neither
    does.
    """
    given, named = options.get("patch_size"), re.search(r"_patch(\d+)_", name)
    if isinstance(given, int):
        return given
    return int(named[1]) if named and given is None else None


def check_image_size(size: int, patch: int) -> None:
    """UserError unless patches cover an image; timm would leave the pixels at its right and lower
    edge out.
    """
    if size % patch or size < patch:
        fitting = patch * max(1, round(size / patch))
        raise UserError(
            f"backbone.image_size must be a multiple of the patch size {patch}, got {size}; "
            f"write for example backbone.image_size={fitting}"
        )
