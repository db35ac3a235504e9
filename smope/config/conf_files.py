"""The files of conf/: where they are, which choices a group has, and reading one of them."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smope.errors import UserError

# Groups that a run's configuration consists of: each chooses a class or function.
GROUPS = ("backbone", "stream", "method", "router", "trainer", "tracker")
# Groups whose files set keys of several other groups. By default none of their files is chosen.
SETTINGS = ("benchmark", "experiment", "variant", "sweep")
ALL_GROUPS = (*GROUPS, *SETTINGS)
MAX_LISTED_CHOICES = 18  # in an error message


def conf_dir() -> Path:
    """The folder of shipped YAML files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise UserError(
        f"no conf/train.yaml in {package} or {package.parent}; the installation is incomplete: "
        f"install smope again"
    )


def choices(group: str, config_dirs: Sequence[Path]) -> list[str]:
    """Names that `group=` accepts: the YAML files of its folder, without their suffix.

    A file whose name starts with _ is no choice; other files include it.
    """
    return sorted(
        {path.stem for folder in config_dirs for path in (folder / group).glob("[!_]*.yaml")}
    )


def config_folders(config_dir: str | None) -> tuple[Path, ...]:
    """conf/, and the folder that --config-dir names, if any."""
    if config_dir is None:
        return (conf_dir(),)
    path = Path(config_dir).expanduser().resolve()
    if not path.is_dir():
        raise UserError(
            f"--config-dir {config_dir}: no such folder; name one laid out like conf/ (method/, "
            f"...)"
        )
    return conf_dir(), path


def known_choices(group: str, value: str, known: Sequence[str]) -> str:
    """The hint for a choice that does not exist.

    Args:
        group: The group of the choice, such as method.
        value: What the user wrote.
        known: The choices of that group.

    Returns:
        The nearest choice, if one is near, and the others, if there are few enough for one line.
    """
    near = difflib.get_close_matches(value, known, n=1)
    if len(known) <= MAX_LISTED_CHOICES:
        named = ", ".join(known)
        return (
            f"did you mean {group}={near[0]}? Choices are {named}"
            if near
            else f"choose one of {named}"
        )
    rest = f"`smope train --help` lists all {len(known)}"
    if near:
        return f"did you mean {group}={near[0]}? {rest}"
    return f"choose one of {', '.join(known[: MAX_LISTED_CHOICES // 2])}, ...; {rest}"


def load_choice(group: str, name: str, config_dirs: Sequence[Path]) -> dict[str, Any]:
    """The values of a choice's file, for a group that no run's configuration has.

    Args:
        group: A folder of conf/, such as tune.
        name: The choice, a file of that folder without its suffix.
        config_dirs: conf/, and the user's own folder if there is one.

    Raises:
        UserError: There is no such choice, or its file cannot be read.
    """
    known = choices(group, config_dirs)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {group}={near[0]}?" if near else ""
        raise UserError(f"{group}={name} is no choice; choose one of {', '.join(known)}{hint}")
    return read_mapping(choice_file(group, name, config_dirs))


def choice_file(group: str, name: str, config_dirs: Sequence[Path]) -> Path:
    """The file of a choice that is known to exist. The user's own folder comes before conf/."""
    paths = (folder / group / f"{name}.yaml" for folder in reversed(config_dirs))
    return next(path for path in paths if path.is_file())


def files_of_choice(group: str, name: str, config_dirs: Sequence[Path]) -> list[Path]:
    """The file of a choice, and those of its group that its defaults list includes.

    Args:
        group: The group, such as trainer.
        name: The choice.
        config_dirs: The folders to look in, such as conf/; a later one wins.

    Returns:
        The choice's own file first. Empty if there is no such file.
    """
    paths = [folder / group / f"{name}.yaml" for folder in reversed(config_dirs)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    included = re.search(r"^defaults: \[(.*)\]", text, re.MULTILINE)
    names = included[1].split(", ") if included else []
    others = [files_of_choice(group, other, config_dirs) for other in names if other != "_self_"]
    return [path, *itertools.chain(*others)]


def choice_values(group: str, name: str, config_dirs: Sequence[Path]) -> dict[str, Any]:
    """The values of a choice's file and of those that it includes, whose values give way.

    Args:
        group: The group, such as backbone.
        name: The choice.
        config_dirs: The folders to look in, such as conf/; a later one wins.

    Raises:
        UserError: There is no such choice, or a file cannot be read.
    """
    known = choices(group, config_dirs)
    if name not in known:
        raise UserError(f"{group}={name} is no choice; {known_choices(group, name, known)}")
    values: dict[str, Any] = {}
    for path in reversed(files_of_choice(group, name, config_dirs)):
        values |= read_mapping(path)
    values.pop("defaults", None)
    return values


def default_choice(group: str) -> str:
    """What `smope train` chooses of a group without an override."""
    chosen = read_mapping(conf_dir() / "train.yaml", resolve=False)["defaults"]
    return next(item[group] for item in chosen if isinstance(item, dict) and group in item)


def read_mapping(path: Path, *, resolve: bool = True) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        path: The file.
        resolve: Whether ${key} is replaced by the value of that key in the file.

    Raises:
        UserError: The file cannot be read, or holds no mapping.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=resolve)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: is not readable YAML ({first_line(error)}); correct it"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of keys; correct it")
    return {str(key): value for key, value in values.items()}


def first_line(error: BaseException) -> str:
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.startswith("See https://")
    ]
    return lines[0] if lines else type(error).__name__
