"""Hydra launchers: which there are, and whether the package that each needs is installed."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smope.config.conf_files import choices
from smope.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
# Launchers of conf/hydra/launcher: the package that each needs, and the extra that installs it.
LAUNCHERS = {
    "basic": None,
    "joblib": ("hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_ray_launcher", "ray"),
}


def check_launcher(override: Override, folders: Sequence[Path]) -> None:
    """UserError, before anything is composed, for a launcher that there is not or that is not
    installed.
    """
    if override.key_or_group != "hydra/launcher":
        return
    name = str(override.value())
    known = list(dict.fromkeys([*LAUNCHERS, *choices("hydra/launcher", folders)]))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
        raise UserError(f"hydra/launcher={name} is no choice; {hint}")
    needed = LAUNCHERS.get(name)
    if needed is not None and not _plugin_is_there(needed[0]):
        raise UserError(
            f"hydra/launcher={name} needs {needed[0].replace('_', '-')}, which is not installed; "
            f"pip install 'smope[{needed[1]}]'"
        )


def _plugin_is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False
