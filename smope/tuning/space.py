"""The search space: a range or a choice for each searched key, checked before anything runs.

{low: 1e-4, high: 1e-2, log: true}   a number in between, even on a logarithmic scale; a whole
                                     number where the key is
{low: 5, high: 50, step: 5}          with a step, not both
[code, paper] or {choices: [...]}    one of these
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smope.config.conf_files import ALL_GROUPS
from smope.config.config import Config, closest_key, replaced, settable
from smope.config.identity import flatten, immaterial
from smope.config.signatures import takes
from smope.config.value_types import convert, describe, fits, shown
from smope.errors import UserError

# How training images are shown. Other keys of a stream change the data, so scores differ.
STREAM_KEYS = ("stream.crop_scale", "stream.flip")
FORMS = "write a range as {low: 1e-4, high: 1e-2, log: true} or a choice as [a,b]"


@dataclass(frozen=True)
class NumberRange:
    """Numbers from `low` to `high`, both included; whole ones where both are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def ends(self) -> list[Any]:
        return [self.low, self.high]

    def holds(self, value: Any) -> bool:
        """Whether a trial could have this value."""
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not self.low <= value <= self.high
        ):
            return False
        return self.step is None or _is_multiple(value - self.low, self.step)

    def __str__(self) -> str:
        more = ", log" if self.log else f", step {self.step}" if self.step else ""
        return f"{self.low} to {self.high}{more}"


@dataclass(frozen=True)
class Choices:
    """One of `values`, each known by its text."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> list[Any]:
        return list(self.values)

    @property
    def by_text(self) -> dict[str, Any]:
        return {shown(value): value for value in self.values}

    def holds(self, value: Any) -> bool:
        return shown(value) in self.by_text

    def __str__(self) -> str:
        return "one of " + ", ".join(self.by_text)


Space = dict[str, NumberRange | Choices]


def make_space(
    config: Config, file: Mapping[str, Any], changes: Mapping[str, Any], given: Collection[str] = ()
) -> Space:
    """The search space of a configuration.

    Args:
        config: The configuration.
        file: Entries of a file of conf/tune; keys that the configuration lacks are left out.
        changes: The user's own entries, which win. Their keys must exist.
        given: Keys that the user set by hand, which the file does not search.

    Raises:
        UserError: for a key that does not exist or must not be searched, and for a value that the
            configuration refuses.
    """
    kinds = settable(config)
    for key in changes:
        _refuse(key, config, kinds)
    entries = {
        key: value
        for key, value in file.items()
        if _applies(key, config, kinds) and key not in given
    }
    entries |= changes
    space = {
        key: _dimension(key, value, kinds[key])
        for key, value in entries.items()
        if value is not None
    }
    if not space:
        raise UserError(
            f"tune.space is empty for this configuration; "
            f"{FORMS.replace('write', 'write tune.space.KEY=')}"
        )
    for key, dimension in space.items():
        for value in dimension.ends:
            _try(config, space, key, value)
    return space


def without_steps(space: Space, changes: Mapping[str, Any], method: str) -> Space:
    """The space of a method that takes no training steps: without keys of the trainer.

    Args:
        space: The search space.
        changes: The user's own entries. UserError if one of them is a key of the trainer.
        method: The method's name, for errors.
    """
    given = next((key for key in changes if key.startswith("trainer.") and key in space), None)
    if given:
        raise UserError(
            f"tune.space.{given}: method {method} takes no training steps; leave it out"
        )
    remaining = {
        key: dimension for key, dimension in space.items() if not key.startswith("trainer.")
    }
    if not remaining:
        raise UserError(
            f"tune.space: method {method} takes no training steps and has no key in the space; "
            f"{FORMS}"
        )
    return remaining


def own_values(config: Config, space: Space) -> dict[str, Any] | None:
    """The configuration's own values of the searched keys; None if one is outside the space.

    Args:
        config: The configuration.
        space: The search space.
    """
    flat = flatten(config.as_dict())
    values = {key: flat.get(key) for key in space}
    return values if all(space[key].holds(value) for key, value in values.items()) else None


def _applies(key: str, config: Config, kinds: Mapping[str, Any]) -> bool:
    return key in kinds and (
        not key.startswith("router.") or takes(config.method["_target_"], "router")
    )


def _refuse(key: str, config: Config, kinds: Mapping[str, Any]) -> None:
    """UserError for a key that does not exist or must not be searched."""
    name, group = f"tune.space.{key}", key.partition(".")[0]
    if key in ALL_GROUPS:
        raise UserError(
            f"{name}: {key} is a group; a search is over keys of one choice: start one for each "
            f"{key}=..."
        )
    no_effect = key in kinds and immaterial(key, flatten(config.as_dict()))
    if key in ("seed", "name", "run_dir", "resume") or group == "tracker" or no_effect:
        raise UserError(
            f"{name}: {key} does not change what a method learns and is not to be searched; leave "
            f"it out"
        )
    if key in kinds and group == "stream" and key not in STREAM_KEYS:
        raise UserError(
            f"{name}: {key} changes what is learned or what it is judged on, so that scores could "
            f"not be compared; "
            f"of the stream only {' and '.join(STREAM_KEYS)} can be searched"
        )
    if key not in kinds:
        near = closest_key(key, list(kinds))
        hint = (
            f"did you mean tune.space.{near}?"
            if near
            else f"keys of {group} are those of `smope train --help`"
        )
        raise UserError(f"{name}: no such key in this configuration; {hint}")
    if not _applies(key, config, kinds):
        raise UserError(f"{name}: this method has no router, so it has no effect; leave it out")


def _dimension(key: str, value: Any, kind: Any) -> NumberRange | Choices:
    """The typed form of one entry; UserError if it is neither a range nor a choice."""
    name = f"tune.space.{key}"
    if isinstance(value, list):
        value = {"choices": value}
    if not isinstance(value, dict):
        one = f"{key}={shown(value)}"
        raise UserError(
            f"tune.space.{one}: must be a range or a choice; {FORMS}, or for this value alone: "
            f"{one}"
        )
    unknown = sorted(set(value) - {"low", "high", "log", "step", "choices"})
    if unknown:
        raise UserError(f"{name}: unknown {unknown[0]!r}; {FORMS}")
    if "choices" in value:
        return _choices(name, value, kind)
    return _range(name, value, kind)


def _choices(name: str, value: Mapping[str, Any], kind: Any) -> Choices:
    values = value["choices"]
    if len(value) > 1 or not isinstance(values, list) or len(values) < 2:
        raise UserError(
            f"{name}: a choice is a list of two or more values and nothing else; write [a,b]"
        )
    for item in values:
        if not fits(item, kind):
            raise UserError(f"{name}: {shown(item)} must be {describe(kind)}; correct the list")
    converted = [convert(item, kind) for item in values]
    if len(set(map(shown, converted))) < len(converted):
        raise UserError(
            f"{name}: must be different values, got {shown(values)}; leave the repeated one out"
        )
    return Choices(tuple(converted))


def _range(name: str, value: Mapping[str, Any], kind: Any) -> NumberRange:
    is_integer = not fits(0.5, kind)
    if not fits(1, kind):
        raise UserError(
            f"{name}: the key must be {describe(kind)}, which has no range; write a choice as [a,b]"
        )
    if not {"low", "high"} <= set(value):
        raise UserError(f"{name}: a range needs low and high; {FORMS}")
    log, step = value.get("log", False), value.get("step")
    for part in ("low", "high", "step"):
        number = value.get(part)
        if not (part == "step" and number is None) and not _is_number(number, is_integer):
            raise UserError(
                f"{name}: {part} must be {'a whole' if is_integer else 'a finite'} number, got "
                f"{shown(number)}"
            )
    low, high = value["low"], value["high"]
    if not isinstance(log, bool):
        raise UserError(f"{name}: log must be true or false, got {shown(log)}")
    if low >= high:
        raise UserError(f"{name}: low must be below high, got low={shown(low)} high={shown(high)}")
    if log and (low <= 0 or step is not None):
        raise UserError(
            f"{name}: log: true needs low above 0 and no step, got low={shown(low)} "
            f"step={shown(step)}"
        )
    if step is not None and (step <= 0 or not _is_multiple(high - low, step)):
        raise UserError(
            f"{name}: step must be above 0 and lead from low to high, got step={shown(step)}"
        )
    return NumberRange(*((low, high) if is_integer else (float(low), float(high))), log, step)


def _is_number(value: Any, is_integer: bool) -> bool:
    return fits(value, int if is_integer else float) and math.isfinite(value)


def _is_multiple(length: float, step: float) -> bool:
    return abs(length / step - round(length / step)) < 1e-6


def _try(config: Config, space: Space, key: str, value: Any) -> None:
    """UserError if the configuration refuses a value, with the other keys as they are, at their
    lowest and at their highest.
    """
    errors: list[UserError] = []
    others: Sequence[Mapping[str, Any]] = (
        {},
        {other: dimension.ends[0] for other, dimension in space.items()},
        {other: dimension.ends[-1] for other, dimension in space.items()},
    )
    for values in others:
        try:
            replaced(config, {**values, key: value})
            return
        except UserError as error:
            errors.append(error)
    raise UserError(f"tune.space.{key}: {errors[0]}") from errors[0]
