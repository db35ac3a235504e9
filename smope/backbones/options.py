"""What `backbone.options` may ask of timm, checked before anything heavy is imported.

timm answers many wrong values with a traceback, or builds a model that cannot be used here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from smope.backbones.patches import check_image_size
from smope.errors import UserError

COUNTS = {"embed_dim": 1, "depth": 1, "num_heads": 1, "attn_head_dim": 1, "reg_tokens": 0}
RATES = (
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
)
SWITCHES = (
    "qkv_bias",
    "qk_norm",
    "proj_bias",
    "no_embed_class",
    "pre_norm",
    "final_norm",
    "fix_init",
    "scale_attn_norm",
    "scale_mlp_norm",
)
# Options with one value that works here, and why.
FIXED = {
    "in_chans": (3, "images are read in colour"),
    "class_token": (True, "features are those of the CLS token"),
    "global_pool": ("token", "features are those of the CLS token"),
    "dynamic_img_size": (False, "all images have the size of backbone.image_size"),
    "dynamic_img_pad": (False, "all images have the size of backbone.image_size"),
    "features_only": (False, "features are those of the CLS token"),
}
# Arguments of timm.create_model that load_backbone gives itself, and the key to use.
OWN = {
    "num_classes": "the classifier follows from the stream",
    "pretrained": "write backbone.weights=hub",
    "pretrained_cfg": "write backbone.name=ARCHITECTURE.TAG",
    "pretrained_cfg_overlay": "write backbone.weights=FILE",
    "checkpoint_path": "write backbone.weights=FILE",
    "model_name": "write backbone.name=NAME",
}


def check_options(options: Mapping[str, Any]) -> None:
    """Check the value of each option by itself, and those that must agree.

    Args:
        options: Further arguments of timm.create_model; null keeps timm's own value.

    Raises:
        UserError: An option is of the wrong type, out of range, or asks for a model that prompts
            cannot be put into.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name in OWN:
            raise UserError(f"backbone.options.{name} cannot be set; leave it out: {OWN[name]}")
        _check_value(name, value)
    size, patch = _side(given.get("img_size")), _side(given.get("patch_size"))
    if size and patch:
        check_image_size(size, patch, "backbone.options.img_size")
    width, heads = given.get("embed_dim"), given.get("num_heads")
    if width and heads and width % heads and "attn_head_dim" not in given:
        raise UserError(
            f"backbone.options.embed_dim must be a multiple of num_heads={heads}, got {width}; "
            f"write for example embed_dim={heads * max(1, round(width / heads))}"
        )


def check_names(options: Mapping[str, Any], known: Collection[str], name: str) -> None:
    """Check that a model has these options.

    Args:
        options: Further arguments of timm.create_model.
        known: The options that the installed timm has for the model.
        name: Of the model.

    Raises:
        UserError: There is no such option.
    """
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1, cutoff=0.6)
            way_out = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise UserError(f"backbone.options.{option}: {name} has no such option; {way_out}")


def _check_value(name: str, value: Any) -> None:
    """UserError if a value has the wrong type or is out of range."""
    if name in FIXED:
        fixed, reason = FIXED[name]
        right = value == fixed and isinstance(value, bool) == isinstance(fixed, bool)
        rule = Rule(lambda _: right, f"be {_text(fixed)}, since {reason}", _text(fixed))
    else:
        rule = RULES.get(name)
    if rule is not None and not rule.holds(value):
        raise UserError(
            f"backbone.options.{name} must {rule.text}, got {_text(value)}; write for example "
            f"backbone.options.{name}={rule.example}"
        )


def _side(value: Any) -> int | None:
    """The side of a square given as n or [n, n]; None for anything else."""
    sides: list[Any] = [*value] if isinstance(value, list | tuple) else [value, value]
    square = len(sides) == 2 and sides[0] == sides[1] and _is_whole(sides[0]) and sides[0] >= 1
    return sides[0] if square else None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    """As it is written in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, list | tuple) else repr(value).strip("'")


class Rule(NamedTuple):
    """What holds for an option, in words, and a value that is right."""

    holds: Callable[[Any], bool]
    text: str
    example: Any


def _at_least(lowest: int) -> Callable[[Any], bool]:
    return lambda value: _is_whole(value) and value >= lowest


SQUARE = "be one whole number of pixels, for images are square"
RULES = {
    "img_size": Rule(lambda value: _side(value) is not None, SQUARE, 224),
    "patch_size": Rule(lambda value: _side(value) is not None, SQUARE, 16),
    "mlp_ratio": Rule(lambda value: _is_number(value) and value > 0, "be a number above 0", 4),
    "init_values": Rule(lambda value: _is_number(value) and value > 0, "be a number above 0", 1e-5),
}
RULES |= {
    name: Rule(_at_least(lowest), f"be a whole number, at least {lowest}", 12)
    for name, lowest in COUNTS.items()
}
RULES |= {
    name: Rule(
        lambda value: _is_number(value) and 0 <= value < 1, "be a number from 0 to below 1", 0
    )
    for name in RATES
}
RULES |= {
    name: Rule(lambda value: isinstance(value, bool), "be true or false", "true")
    for name in SWITCHES
}
