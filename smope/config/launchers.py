"""The Hydra launchers, and the package that each of them needs."""

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
    "one_gpu": ("hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_ray_launcher", "ray"),
}


def check_launcher(override: Override, folders: Sequence[Path]) -> None:
    """Check the choice of a launcher before anything is composed.

    Args:
        override: Any override; only one of hydra/launcher is looked at.
        folders: The folders with choices.

    Raises:
        UserError: if there is no such launcher, or its package is not installed.
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
    if needed is not None and not _is_installed(needed[0]):
        raise UserError(
            f"hydra/launcher={name} needs {needed[0].replace('_', '-')}, which is not installed; "
            f"pip install 'smope[{needed[1]}]'"
        )


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{package}") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False
