"""The validated configuration: keys known, types right, static rules met, before torch is imported.

Keys and types come from the constructors' signatures (signatures.py), ranges from ranges.py,
combinations from cross_checks.py. Every error is one line that names key, value, rule and way out.
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

from smope.config.cross_checks import check_rules
from smope.config.identity import (
    GROUPS,
    NOT_HASHED,
    NOT_HASHED_IN_STREAM,
    NOT_HASHED_IN_TRAINER,
    PATHS,
    decides_numbers,
    flatten,
)
from smope.config.ranges import RULES
from smope.config.signatures import Key, keys_of
from smope.config.value_types import convert, describe, fits, shown
from smope.errors import UserError

TOP_LEVEL = {
    "seed": Key(int, required=True),
    "name": Key(str, required=True),
    "run_dir": Key(str | None, False, True, None),
    "resume": Key(str | None, False, True, None),
}
# What build.py passes to build_stream from elsewhere; the rest of its arguments are keys of every
# stream.
STREAM_BUILDER = "smope.streams.stream.build_stream"
STREAM_COMPUTED = {"image_size", "seed"}
MISSING = "???"
# Classes that have moved since a run may have been written, by the name that its config.yaml has.
MOVED_TARGETS = {
    "smope.report.trackers.NoTracker": "smope.trackers.base.NoTracker",
    "smope.report.trackers.CsvTracker": "smope.trackers.csv.CsvTracker",
    "smope.report.trackers.TensorBoardTracker": "smope.trackers.tensorboard.TensorBoardTracker",
    "smope.report.trackers.WandbTracker": "smope.trackers.wandb.WandbTracker",
}
# What to write where a choice leaves a value to the user.
WANTED = {
    "stream.root": "folder of images",
    "stream.table": "CSV file",
    "backbone.weights": "file or folder",
    "backbone.name": "timm model",
}


@dataclass(frozen=True)
class Config:
    """One run. Groups are plain dicts with their `_target_` and every keyword argument that
    configures it.
    """

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
        """A copy as nested plain values, in the order of the file that it came from."""
        return asdict(self)

    def to_yaml(self) -> str:
        """The text of a run directory's config.yaml; `load_config` reads it back."""
        import yaml

        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)

    @property
    def config_hash(self) -> str:
        """12 hex digits that name the computation: the same whatever the name, place, tracker,
        device or workers.

        Files and folders count as they are named, for what is in them is not known yet.
        """
        kept = {key: value for key, value in self.as_dict().items() if key not in NOT_HASHED}
        flat = flatten(kept)
        for group, names in (("stream", NOT_HASHED_IN_STREAM), ("trainer", NOT_HASHED_IN_TRAINER)):
            for name in names:
                if not decides_numbers(f"{group}.{name}", flat):
                    kept[group].pop(name, None)
        text = json.dumps(kept, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def validate(data: Mapping[str, Any], given: Collection[str] = ()) -> Config:
    """Check composed plain values and complete them with the constructors' defaults.

    `given` holds the dotted keys that the user set by hand: `stream.classes_per_task` decides the
    number of tasks unless `stream.num_tasks` is among them. UserError at the first key that is
    unknown or of the wrong type; it names all that are missing, or out of range, or all that do not
    agree or are not there.
    """
    data = _follow_classes_per_task(data, given)
    schemas = {group: _group_keys(group, data[group]) for group in GROUPS if _is_group(data, group)}
    known = [*TOP_LEVEL, *(f"{group}.{key}" for group in schemas for key in schemas[group])]
    _refuse_unknown(data, schemas, known)
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
    check_rules(flatten(values))
    return Config(**values)


def read_config(run_dir: Path) -> dict[str, Any]:
    """The content of a run directory's config.yaml, with classes by the names that they have now.

    UserError where there is no such file, or it holds no mapping.
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
    """The configuration that a run directory was made with; UserError where there is none or it no
    longer holds.

    `moved` replaces values by dotted key, for data or weights that lie elsewhere now, or whole
    groups.
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
    groups = {group: _group_keys(group, getattr(config, group)) for group in GROUPS}
    return {
        f"{group}.{name}": key.kind for group, keys in groups.items() for name, key in keys.items()
    }


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values by dotted key, validated as a whole."""
    data = config.as_dict()
    for key, value in values.items():
        group, _, name = key.partition(".")
        data[group][name] = value
    return validate(data, {"stream.num_tasks"})


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration, completed with today's defaults for keys that it was written without.

    Groups whose class is no longer there stay as they are.
    """
    groups = {
        group: _completed(group, config[group]) for group in GROUPS if _is_group(config, group)
    }
    return {**config, **groups}


def _completed(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        known = _group_keys(group, values)
    except UserError:
        return dict(values)
    return {**{name: key.default for name, key in known.items() if key.has_default}, **values}


def chosen_name(target: str) -> str:
    """The name by which a `_target_` is chosen, its file's: coda for
    smope.methods.coda.CODAPrompt.
    """
    return target.rpartition(".")[0].rpartition(".")[2]


def closest_key(name: str, known: Sequence[str]) -> str | None:
    """The key a mistyped one most likely means: nearest spelling, or the same last part in another
    group.
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


def _is_group(data: Mapping[str, Any], group: str) -> bool:
    value = data.get(group)
    return isinstance(value, Mapping) and isinstance(value.get("_target_"), str)


def _group_keys(group: str, values: Mapping[str, Any]) -> dict[str, Key]:
    keys = keys_of(values["_target_"], f"{group}._target_")
    if group == "stream":
        common = keys_of(STREAM_BUILDER, "stream")
        common = {name: key for name, key in common.items() if name not in STREAM_COMPUTED}
        keys = {"name": Key(str, required=True)} | keys | common
    return keys


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
    """UserError that names every key without a value; parts: values and schema by the prefix of
    their keys.
    """
    missing = {
        prefix + name: key.kind
        for prefix, (data, keys) in parts.items()
        for name, key in keys.items()
        if data.get(name, MISSING if key.required else None) == MISSING
    }
    if missing:
        wanted = " ".join(
            f"{dotted}=<{WANTED.get(dotted, describe(kind))}>" for dotted, kind in missing.items()
        )
        *most, last = missing
        named, verb = (f"{', '.join(most)} and {last}", "have") if most else (last, "has")
        raise UserError(f"{named} {verb} no value yet; write {wanted}")


def _checked(data: Mapping[str, Any], keys: Mapping[str, Key], prefix: str) -> dict[str, Any]:
    """The values of one group in the schema's order, types checked, defaults filled in."""
    checked: dict[str, Any] = {}
    for name, key in keys.items():
        dotted = prefix + name
        if name in data:
            if not fits(data[name], key.kind):
                raise UserError(_type_error(dotted, data[name], key))
            checked[name] = convert(data[name], key.kind)
        elif key.has_default:
            checked[name] = key.default
    return checked


def _type_error(dotted: str, value: Any, key: Key) -> str:
    message = f"{dotted} must be {describe(key.kind)}, got {shown(value)}"
    if isinstance(value, int | float) and not isinstance(value, bool) and fits("", key.kind):
        return f"{message}; quote a number that is meant as text: {dotted}=\"'{value}'\""
    example = (
        RULES[dotted].example
        if dotted in RULES
        else shown(key.default)
        if key.has_default
        else "..."
    )
    return f"{message}; write for example {dotted}={example}"


def _follow_classes_per_task(data: Mapping[str, Any], given: Collection[str]) -> Mapping[str, Any]:
    """An explicit list of classes per task decides how many tasks there are, unless that is said
    as well.
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
    """Make the files and folders in `values` absolute, ~ expanded: a run stays readable from any
    folder.
    """
    for group, name, keywords in PATHS:
        keys = values.get(group) or {}
        path = keys.get(name)
        if isinstance(path, str) and path not in ("", MISSING, *keywords):
            expanded = os.path.expanduser(path)
            # what may be a mistyped keyword stays as it was written
            keys[name] = (
                os.path.abspath(expanded) if not keywords or os.path.exists(expanded) else expanded
            )
