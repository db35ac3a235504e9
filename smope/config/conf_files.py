"""The files of conf/: where they are, the choices of a group, and reading one of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smope.errors import UserError

# Groups that a run's configuration consists of: each chooses a class or function.
GROUPS = ("backbone", "stream", "method", "router", "trainer", "tracker")
# Groups whose files set keys of other groups. By default none is chosen.
SETTINGS = ("experiment", "variant", "sweep")
ALL_GROUPS = (*GROUPS, *SETTINGS)
LISTED_CHOICES = 18  # at most, in one message


def conf_dir() -> Path:
    """The folder of shipped YAML files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise UserError(
        f"no conf/train.yaml in {package} or {package.parent}; not all is installed: install "
        f"smope again"
    )


def choices(group: str, config_dirs: Sequence[Path]) -> list[str]:
    """The names that `group=` accepts: its YAML files, but for those that start with _.

    Args:
        group: The group, such as "router".
        config_dirs: The folders to look in, such as conf/.
    """
    return sorted(
        {path.stem for folder in config_dirs for path in (folder / group).glob("[!_]*.yaml")}
    )


def config_folders(config_dir: str | None) -> tuple[Path, ...]:
    """conf/ and the folder of --config-dir, if there is one."""
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
    """What an error says about an unknown choice: the nearest one, and the others if they fit.

    Args:
        group: The group.
        value: What the user chose.
        known: The choices that there are.
    """
    near = difflib.get_close_matches(value, known, n=1)
    if len(known) <= LISTED_CHOICES:
        listed = ", ".join(known)
        if near:
            return f"did you mean {group}={near[0]}? Choices are {listed}"
        return f"choose one of {listed}"
    rest = f"`smope train --help` lists all {len(known)}"
    if near:
        return f"did you mean {group}={near[0]}? {rest}"
    return f"choose one of {', '.join(known[: LISTED_CHOICES // 2])}, ...; {rest}"


def load_choice(group: str, name: str, config_dirs: Sequence[Path]) -> dict[str, Any]:
    """The values of a choice's file, for a group that is not part of a run's configuration.

    Args:
        group: The group, such as "tune".
        name: The choice.
        config_dirs: The folders to look in; a later one wins.

    Raises:
        UserError: if there is no such choice or its file cannot be read.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    known = choices(group, config_dirs)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {group}={near[0]}?" if near else ""
        raise UserError(f"{group}={name} is no choice; choose one of {', '.join(known)}{hint}")
    path = next(
        p for folder in reversed(config_dirs) if (p := folder / group / f"{name}.yaml").is_file()
    )
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: is not readable YAML ({first_line(error)}); correct it"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a mapping of keys; correct it")
    return {str(key): value for key, value in values.items()}


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, links left out."""
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.startswith("See https://")
    ]
    return lines[0] if lines else type(error).__name__
