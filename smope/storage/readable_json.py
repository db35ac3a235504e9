"""JSON for people too: lists of plain values in lines of text, everything else indented."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

WIDTH = 90  # characters


def readable_json(value: Any, indent: str = "") -> str:
    """A value as JSON.

    A row of a matrix, or the classes of a task, is a line, or several where it is long, instead of
    a line for each number.

    Args:
        value: Plain values.
        indent: Blanks before the lines after the first.

    Returns:
        The text, without a line break at the end.

    Raises:
        ValueError: If a number is not finite.
    """
    inner = indent + " "
    if isinstance(value, Mapping) and value:
        items = [
            f"{json.dumps(str(key))}: {readable_json(item, inner)}" for key, item in value.items()
        ]
        brackets = "{}"
    elif isinstance(value, list | tuple) and value:
        if not any(isinstance(item, Mapping | list | tuple) for item in value):
            return _wrapped([json.dumps(item, allow_nan=False) for item in value], inner)
        items, brackets = [readable_json(item, inner) for item in value], "[]"
    else:
        return json.dumps(value, allow_nan=False)
    body = f",\n{inner}".join(items)
    return f"{brackets[0]}\n{inner}{body}\n{indent}{brackets[1]}"


def _wrapped(items: list[str], indent: str) -> str:
    """A list in lines of at most WIDTH characters, if each item fits, and the key before it."""
    lines, line = [], ""
    for item in items:
        if line and len(indent) + len(line) + len(item) + 2 > WIDTH:
            lines.append(line)
            line = ""
        line += f", {item}" if line else item
    text = f",\n{indent}".join([*lines, line])
    return f"[{text}]"
