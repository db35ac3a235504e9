"""Which keys there are: those of the run itself, and those of a group by its `_target_`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from smope.config.conf_files import GROUPS, choices, conf_dir, files_of_choice
from smope.config.signatures import Key, keys_of
from smope.declare.ranges import Range
from smope.declare.texts import FolderName, PathTo
from smope.errors import UserError

NEW_RUN = PathTo("new folder", "runs/first_try")
OLD_RUN = PathTo("run directory", "runs/digits/2026-01-31_12-00-00")
TOP_LEVEL = {
    "seed": Key(int, required=True, constraints=(Range(0, 2**32 - 1),)),
    "name": Key(str, required=True, constraints=(FolderName(),)),
    "run_dir": Key(str | None, False, True, None, (NEW_RUN,)),
    "resume": Key(str | None, False, True, None, (OLD_RUN,)),
}
# Every stream has the arguments of this function as keys, but for those that run/build.py passes.
STREAM_BUILDER = "smope.streams.stream.build_stream"
STREAM_COMPUTED = {"image_size", "seed"}
TARGET = re.compile(r"^_target_:\s*['\"]?([\w.]+)", re.MULTILINE)


@lru_cache
def group_keys(group: str, target: str) -> dict[str, Key]:
    """The keys of a group.

    Args:
        group: Its name, such as "stream".
        target: The class or function that its `_target_` names.

    Raises:
        UserError: if there is no such class or function.
    """
    keys = keys_of(target, f"{group}._target_")
    if group != "stream":
        return keys
    common = {
        name: key
        for name, key in keys_of(STREAM_BUILDER, "stream").items()
        if name not in STREAM_COMPUTED
    }
    return {"name": Key(str, required=True)} | keys | common


def find_key(dotted: str, settings: Mapping[str, Any]) -> Key | None:
    """The declaration of a key.

    Args:
        dotted: The key, such as "stream.root".
        settings: Values by dotted key; the `_target_` of the key's group decides what is declared.
            If it is not there or cannot be read, the choices of conf/ are looked through.
    """
    if dotted in TOP_LEVEL:
        return TOP_LEVEL[dotted]
    group, _, name = dotted.partition(".")
    if group not in GROUPS:
        return None
    declared = declarations(group, name, [str(settings.get(f"{group}._target_"))])
    return declared[0] if declared else _shipped_key(group, name)


@lru_cache
def _shipped_key(group: str, name: str) -> Key | None:
    """What the first choice of conf/ that has the key declares it to be."""
    keys = declarations(group, name, choice_targets(group, (conf_dir(),)).values())
    return keys[0] if keys else None


def declarations(group: str, name: str, targets: Iterable[str]) -> list[Key]:
    """The declarations of the key `group.name` by these targets; targets without it are skipped."""
    declared = []
    for target in dict.fromkeys(targets):
        try:
            key = group_keys(group, target).get(name)
        except UserError:  # validate() says so when the target is used
            continue
        if key is not None:
            declared.append(key)
    return declared


def choice_targets(group: str, config_dirs: Sequence[Path]) -> dict[str, str]:
    """The `_target_` of every choice of a group, by the choice's name; later folders win."""
    targets: dict[str, str] = {}
    for name in choices(group, config_dirs):
        files = files_of_choice(group, name, config_dirs)
        text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
        target = TARGET.search(text)
        if target is not None:
            targets[name] = target[1]
    return targets


def free_text(dotted: str, chosen: Mapping[str, Sequence[str]], folders: Sequence[Path]) -> bool:
    """Whether the value of a key is text that is taken as it stands on the command line.

    Args:
        dotted: The key.
        chosen: The choices that overrides make, by group. Of other groups, and where none of these
            has the key, every choice has to agree.
        folders: The folders with choices, such as conf/.
    """
    if dotted in TOP_LEVEL:
        return TOP_LEVEL[dotted].free_text
    group, _, name = dotted.partition(".")
    if group not in GROUPS:
        return False
    targets = choice_targets(group, folders)
    named = [targets[choice] for choice in chosen.get(group, ()) if choice in targets]
    keys = declarations(group, name, named) or declarations(group, name, targets.values())
    return bool(keys) and all(key.free_text for key in keys)
