"""From overrides to a run: new or resumed, its configuration and its directory."""

from __future__ import annotations

import time
from itertools import chain, count
from pathlib import Path
from typing import Any

from smope.config.config import MISSING, Config, absolute_paths, load_config, read_config
from smope.config.hydra import compose, compose_values
from smope.config.identity import flatten, may_move
from smope.config.overrides import Overrides
from smope.config.schema import TOP_LEVEL
from smope.config.value_types import shown
from smope.distributed import torchrun
from smope.errors import UserError
from smope.run.early_checks import check_early
from smope.storage.run_directory import RUNS_FOLDER, RunDirectory
from smope.storage.run_search import unfinished_run
from smope.training.auto import AUTO


def plan(overrides: Overrides) -> tuple[Config, Path, bool]:
    """The configuration, the run directory, and whether to resume there."""
    resumed = override_value(overrides, "resume")
    if resumed is not None:
        TOP_LEVEL["resume"].check("resume", resumed)
        run_dir = unfinished_run(Path(resumed).expanduser(), _print_once)
        config = _resumed_config(overrides, run_dir)
        check_early(config)
        return config, run_dir, True
    config = compose(overrides)
    check_early(config)
    return config, new_run_dir(config), False


def _print_once(line: str) -> None:
    """Print a line in the first of several processes."""
    if torchrun.rank() == 0:
        print(line)


def new_run_dir(config: Config) -> Path:
    """`run_dir` if it is set, else runs/<name>/<time>. Nothing is created.

    UserError if `run_dir` is in use.
    """
    if config.run_dir is None:
        folder = RUNS_FOLDER / config.name
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        later = (folder / f"{stamp}_{number}" for number in count(2))
        return next(path for path in chain([folder / stamp], later) if not path.exists())
    path = Path(config.run_dir).expanduser()
    if torchrun.rank() == 0:  # other processes of the run may find a directory that this one made
        RunDirectory.check_free(path)
    return path


def override_value(overrides: Overrides, key: str) -> Any:
    """What the user wrote for a key.

    Args:
        overrides: the command line.
        key: a group or a key.

    Returns:
        The last value; None where there is none.
    """
    values = [item.value() for item in overrides.parsed if item.key_or_group == key]
    return values[-1] if values else None


def _resumed_config(overrides: Overrides, run_dir: Path) -> Config:
    """The configuration of an interrupted run. UserError if the overrides change more than places,
    workers, device, checkpoints and tracker.
    """
    RunDirectory.open(run_dir, "resume")
    settings = flatten(read_config(run_dir))
    # a group comes before its keys
    movable = sorted(key for key in overrides.given if may_move(key, settings))
    moved = {key: override_value(overrides, key) for key in movable}
    if "tracker" in moved:
        moved["tracker"] = compose_values(overrides)["tracker"]
    saved = load_config(run_dir, moved=moved)
    changed = _changed(overrides, saved)
    if changed:
        raise UserError(
            f"resume={run_dir} continues with that run's own configuration, but "
            f"{', '.join(changed)} differs from it; leave the override out, or start a new run "
            f"(where things are, workers, device, checkpoints and tracker may change)"
        )
    return saved


def _changed(overrides: Overrides, saved: Config) -> list[str]:
    """What the overrides change in the saved configuration, as key=value.

    Choosing a group sets all its keys, choosing an experiment those that differ from the defaults.
    """
    values = _flat_values(overrides)
    defaults = _flat_values(Overrides([], [], overrides.config_dirs))
    old = flatten(saved.as_dict())
    changed = []
    for key, value in values.items():
        if key in ("resume", "run_dir") or may_move(key, old):
            continue
        named = key in overrides.given or key.partition(".")[0] in overrides.given
        is_set = named or value != defaults.get(key)
        if is_set and value not in (MISSING, AUTO, old.get(key)):
            changed.append(f"{key}={shown(value)}")
    return changed


def _flat_values(overrides: Overrides) -> dict[str, Any]:
    values = compose_values(overrides)
    absolute_paths(values)
    return flatten(values)
