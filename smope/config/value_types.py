"""The types of configuration values: whether a value fits, its final form, and its name in errors.

A type is made of int, float, bool, str, None, list, dict, Any, Literal and unions of them.
"""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

UNIONS = (Union, types.UnionType)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has a type. A whole number is a float too; true is no whole number.

    Args:
        value: A value from YAML or the command line.
        kind: The type.
    """
    if kind is Any:
        return True
    if kind is None or kind is types.NoneType:
        return value is None
    if kind in (int, float, bool, str, list, dict):
        accepted = (int, float) if kind is float else kind
        return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    return any(fits(value, member) for member in arguments)


def convert(value: Any, kind: Any) -> Any:
    """A value in the form of its type: 1 becomes 1.0 for a float, so that equal values look equal.

    Args:
        value: A value that fits.
        kind: The type.
    """
    if isinstance(value, bool) or not isinstance(value, int | list):
        return value
    members = get_args(kind) if get_origin(kind) in UNIONS else (kind,)
    if isinstance(value, list):
        item = next((get_args(m)[0] for m in members if get_origin(m) is list), Any)
        return [convert(element, item) for element in value]
    return float(value) if float in members and int not in members else value


def switched(value: Any, kind: Any) -> Any:
    """`on` and `off` on the command line are true and false, as they are in YAML.

    Args:
        value: A value from YAML or the command line.
        kind: The type of its key.
    """
    switch = {"on": True, "off": False}.get(value) if isinstance(value, str) else None
    return value if switch is None or fits(value, kind) or not fits(switch, kind) else switch


def describe(kind: Any) -> str:
    """The type in words: `a whole number`, `one of code, paper`, `a list of numbers or null`."""
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
    }
    words |= {
        list: "a list",
        dict: "a mapping {name: value}",
        None: "null",
        types.NoneType: "null",
        Any: "a value",
    }
    if kind in words:
        return words[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is list:
        return f"a list of {_plural(arguments[0])}"
    if origin is dict:
        return words[dict]
    return " or ".join(describe(member) for member in arguments)


def shown(value: Any) -> str:
    """A value as it is written on the command line; text without quotes."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, str):
        return value or "''"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _plural(kind: Any) -> str:
    return {int: "whole numbers", float: "numbers", str: "texts"}.get(kind, "values")
