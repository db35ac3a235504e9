"""The validated configuration: every key is known and every value keeps its rules, before torch is
imported.

Keys, types and constraints come from the constructors' signatures (schema.py), rules about several
keys from cross_checks.py. Every error is one line that names key, value, rule and way out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smope.config.conf_files import GROUPS
from smope.config.cross_checks import check_constraints, check_values
from smope.config.identity import (
    ADDED_LATER,
    NOT_HASHED,
    NOT_HASHED_IN_STREAM,
    NOT_HASHED_IN_TRAINER,
    decides_numbers,
    flatten,
)
from smope.config.schema import TOP_LEVEL, group_keys
from smope.config.signatures import Key
from smope.config.value_types import convert, describe, fits, shown, switched
from smope.errors import UserError

MISSING = "???"
# Classes that have moved, by their name in the config.yaml of older runs.
MOVED_TARGETS = {
    "smope.report.trackers.NoTracker": "smope.trackers.base.NoTracker",
    "smope.report.trackers.CsvTracker": "smope.trackers.csv.CsvTracker",
    "smope.report.trackers.TensorBoardTracker": "smope.trackers.tensorboard.TensorBoardTracker",
    "smope.report.trackers.WandbTracker": "smope.trackers.wandb.WandbTracker",
}


@dataclass(frozen=True)
class Config:
    """The configuration of one run. Each group has its `_target_` and a value for every key."""

    seed: int
    name: str
    run_dir: str | None
    resume: str | None
    backbone: dict[str, Any]
    stream: dict[str, Any]
    method: dict[str, Any]
    router: dict[str, Any]
    trainer: dict[str, Any]
    tracker: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """A copy as nested plain values, in the order of config.yaml."""
        return asdict(self)

    def to_yaml(self) -> str:
        """The text of a run directory's config.yaml; `load_config` reads it back."""
        import yaml

        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    @property
    def config_hash(self) -> str:
        """12 hex digits that name the computation, whatever the run's name, tracker or device.

        Paths count as they are written, since the content of files is not known yet.
        """
        hashed = {key: value for key, value in self.as_dict().items() if key not in NOT_HASHED}
        flat = flatten(hashed)
        for group, names in (("stream", NOT_HASHED_IN_STREAM), ("trainer", NOT_HASHED_IN_TRAINER)):
            for name in names:
                if not decides_numbers(f"{group}.{name}", flat):
                    hashed[group].pop(name, None)
        for group in (group for group in GROUPS if _is_group(hashed, group)):
            for name, value in ADDED_LATER.get(hashed[group]["_target_"], {}).items():
                if hashed[group].get(name) == value:
                    del hashed[group][name]
        text = json.dumps(hashed, sort_keys=True, ensure_ascii=False)
        # a path may have bytes that are no text
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def validate(data: Mapping[str, Any], given: Collection[str] = ()) -> Config:
    """Check composed values and complete them with the constructors' defaults.

    Args:
        data: Plain values as Hydra composes them.
        given: The dotted keys that the user set. A list in `stream.classes_per_task` decides the
            number of tasks unless `stream.num_tasks` is among them.

    Raises:
        UserError: at the first key that is unknown or has the wrong type. Keys without a value,
            values out of range, and values that do not fit together are named all at once.
    """
    data = _follow_classes_per_task(data, given)
    schemas = _schemas(data)
    refuse_unknown_keys(data)
    _refuse_missing(
        {"": (data, TOP_LEVEL)} | {f"{group}.": (data[group], schemas[group]) for group in schemas}
    )
    values = _checked(data, TOP_LEVEL, "")
    for group in GROUPS:
        if group not in schemas:
            raise UserError(
                f"{group}={shown(data.get(group))} chooses nothing; write {group}=<one of "
                f"conf/{group}/>"
            )
        values[group] = {"_target_": data[group]["_target_"]} | _checked(
            data[group], schemas[group], f"{group}."
        )
    absolute_paths(values)
    keys = TOP_LEVEL | {
        f"{group}.{name}": key for group, schema in schemas.items() for name, key in schema.items()
    }
    check_values(flatten(values), keys)
    return Config(**values)


def checked_group(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one group by itself, such as `trainer`, without `_target_`.

    Args:
        group: Its name.
        values: Its values, with `_target_`; the constructor's defaults complete them.

    Raises:
        UserError: A key is unknown, or a value is of another type or out of range.
    """
    keys = group_keys(group, str(values.get("_target_")))
    _refuse_unknown({group: values}, {group: keys}, [f"{group}.{name}" for name in keys])
    checked = _checked(values, keys, f"{group}.")
    check_constraints(
        {f"{group}.{name}": value for name, value in checked.items()},
        {f"{group}.{name}": key for name, key in keys.items()},
    )
    return checked


def read_config(run_dir: Path) -> dict[str, Any]:
    """The content of a run directory's config.yaml, with the present names of classes.

    UserError if there is no such file, or it holds no mapping.
    """
    import yaml

    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{run_dir} is no run directory: it has no config.yaml; name one that `smope train` "
            f"wrote"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not readable YAML ({str(error).splitlines()[0]}); restore it or train anew"
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping of keys; restore it or train anew")
    for values in data.values():
        if isinstance(values, dict) and values.get("_target_") in MOVED_TARGETS:
            values["_target_"] = MOVED_TARGETS[values["_target_"]]
    return data


def load_config(run_dir: Path, moved: Mapping[str, Any] | None = None) -> Config:
    """The validated configuration of a run directory.

    Args:
        run_dir: The directory.
        moved: Values by dotted key, or whole groups, that replace those of the file: data or
            weights may be elsewhere now.

    Raises:
        UserError: if there is no configuration, or it is no longer valid.
    """
    data = read_config(run_dir)
    for key, value in (moved or {}).items():
        group, _, name = key.partition(".")
        if name:
            data[group][name] = value
        else:
            data[group] = value
    return validate(data)


def settable(config: Config) -> dict[str, Any]:
    """The type (value_types.py) of every key of the groups of this configuration, by dotted key."""
    groups = {group: group_keys(group, getattr(config, group)["_target_"]) for group in GROUPS}
    return {
        f"{group}.{name}": key.kind for group, keys in groups.items() for name, key in keys.items()
    }


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values, validated as a whole.

    Args:
        config: The configuration.
        values: The new values by dotted key.
    """
    data = config.as_dict()
    for key, value in values.items():
        group, _, name = key.partition(".")
        data[group][name] = value
    return validate(data, {"stream.num_tasks"})


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with today's defaults for keys that it was written without.

    A group whose class no longer exists stays as it is.
    """
    groups = {
        group: _completed(group, config[group]) for group in GROUPS if _is_group(config, group)
    }
    return {**config, **groups}


def _completed(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        known = group_keys(group, values["_target_"])
    except UserError:
        return dict(values)
    return {**{name: key.default for name, key in known.items() if key.has_default}, **values}


def closest_key(name: str, known: Sequence[str]) -> str | None:
    """The key that a mistyped one most likely means, by spelling or by its last part.

    Args:
        name: The mistyped key.
        known: The keys that there are.
    """
    group, _, last = name.rpartition(".")
    candidates = known if group else [*known, *GROUPS, "benchmark", "experiment"]
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.75)
    if near:
        return near[0]
    parts: dict[str, str] = {}
    for key in sorted(known, key=lambda key: not key.startswith(f"{group}.")):
        parts.setdefault(key.rpartition(".")[2], key)
    match = difflib.get_close_matches(last, list(parts), n=1, cutoff=0.7)
    return parts[match[0]] if match else None


def refuse_unknown_keys(data: Mapping[str, Any]) -> None:
    """UserError for the first key that does not exist, such as a mistyped one.

    Args:
        data: Plain values as Hydra composes them; they may lack a value.
    """
    schemas = _schemas(data)
    _refuse_unknown(data, schemas, _known_keys(schemas))


def known_keys(data: Mapping[str, Any]) -> list[str]:
    """Every key of a composed configuration, by dotted name."""
    return _known_keys(_schemas(data))


def _known_keys(schemas: Mapping[str, Mapping[str, Key]]) -> list[str]:
    return [*TOP_LEVEL, *(f"{group}.{key}" for group in schemas for key in schemas[group])]


def _schemas(data: Mapping[str, Any]) -> dict[str, dict[str, Key]]:
    return {
        group: group_keys(group, data[group]["_target_"])
        for group in GROUPS
        if _is_group(data, group)
    }


def _is_group(data: Mapping[str, Any], group: str) -> bool:
    value = data.get(group)
    return isinstance(value, Mapping) and isinstance(value.get("_target_"), str)


def _refuse_unknown(
    data: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Key]], known: Sequence[str]
) -> None:
    for key, value in _unknown(data, schemas):
        group, closest = key.partition(".")[0], closest_key(key, known)
        if closest:
            hint = f"did you mean {closest}?"
        elif group in schemas:
            hint = (
                f"keys of {group} are {', '.join(schemas[group])}"
                if schemas[group]
                else f"this {group} has no keys"
            )
        else:
            hint = "`smope train --help` lists the keys"
        raise UserError(f"unknown key {key}={shown(value)}; {hint}")


def _unknown(
    data: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Key]]
) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if key in schemas:
            yield from (
                (f"{key}.{name}", item)
                for name, item in value.items()
                if name not in {"_target_", *schemas[key]}
            )
        elif key not in TOP_LEVEL and key not in GROUPS:
            inner = next(iter(value.items()), None) if isinstance(value, Mapping) else None
            yield (f"{key}.{inner[0]}", inner[1]) if inner else (key, value)


def _refuse_missing(parts: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Key]]]) -> None:
    """UserError that names every key without a value.

    Args:
        parts: Values and schema, by the prefix of their keys.
    """
    missing = {
        prefix + name: key.noun or describe(key.kind)
        for prefix, (data, keys) in parts.items()
        for name, key in keys.items()
        if data.get(name, MISSING if key.required else None) == MISSING
    }
    if missing:
        wanted = " ".join(f"{dotted}=<{noun}>" for dotted, noun in missing.items())
        *most, last = missing
        named, verb = (f"{', '.join(most)} and {last}", "have") if most else (last, "has")
        raise UserError(f"{named} {verb} no value yet; write {wanted}")


def _checked(data: Mapping[str, Any], keys: Mapping[str, Key], prefix: str) -> dict[str, Any]:
    """The values of one group in the schema's order, types checked, defaults filled in."""
    checked: dict[str, Any] = {}
    for name, key in keys.items():
        dotted = prefix + name
        if name in data:
            value = switched(data[name], key.kind)
            if not fits(value, key.kind):
                raise UserError(_type_error(dotted, value, key))
            checked[name] = convert(value, key.kind)
        elif key.has_default:
            checked[name] = key.default
    return checked


def _type_error(dotted: str, value: Any, key: Key) -> str:
    message = f"{dotted} must be {describe(key.kind)}, got {shown(value)}"
    if isinstance(value, int | float) and not isinstance(value, bool) and fits("", key.kind):
        return f"{message}; quote a number that is meant as text: {dotted}=\"'{value}'\""
    return f"{message}; write for example {dotted}={key.example}"


def _follow_classes_per_task(data: Mapping[str, Any], given: Collection[str]) -> Mapping[str, Any]:
    """The values with as many tasks as `stream.classes_per_task` has sizes, unless the user set
    `stream.num_tasks` as well.
    """
    stream = data.get("stream")
    sizes = stream.get("classes_per_task") if isinstance(stream, Mapping) else None
    if (
        not isinstance(stream, Mapping)
        or not isinstance(sizes, list)
        or "stream.num_tasks" in given
    ):
        return data
    return {**data, "stream": {**stream, "num_tasks": len(sizes)}}


def absolute_paths(values: Mapping[str, Any]) -> None:
    """Make the paths in `values`, groups of a configuration, absolute, with ~ expanded.

    A run then finds its files from any folder. Keys are known by the group's `_target_`; a group
    without one, or with one that cannot be read, stays as it is.
    """
    for group in (group for group in GROUPS if _is_group(values, group)):
        try:
            keys = group_keys(group, values[group]["_target_"])
        except UserError:
            continue
        for name in keys.keys() & values[group].keys():
            path = keys[name].path
            if path is not None:
                values[group][name] = _absolute(values[group][name], path.keywords)


def _absolute(value: Any, keywords: Sequence[str]) -> Any:
    """A path made absolute; what is no path, or one of the keywords, as it is."""
    if not isinstance(value, str) or value in ("", MISSING, *keywords):
        return value
    expanded = os.path.expanduser(value)
    if keywords and not os.path.exists(expanded):
        return expanded  # it may be a mistyped keyword, which the error should show as it was typed
    return os.path.abspath(expanded)
