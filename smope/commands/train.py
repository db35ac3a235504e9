"""`smope train`: compose and validate the configuration, choose the run directory, hand over."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smope import launch
from smope.commands import Parser
from smope.compose import (
    Overrides,
    compose,
    compose_values,
    read_overrides,
)
from smope.config import MISSING, Config, absolute_paths, flatten, load_config, may_move, read_config
from smope.errors import UserError
from smope.plain_types import shown
from smope.rules import check_rule
from smope.runs import RunDirectory

RUNS = Path("runs")


def run(argv: Sequence[str]) -> int:
    """Entry point of the command; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        from smope.commands.train_help import train_help

        print(train_help(_parser()))
        return 0
    options = _parser().parse_intermixed_args(argv)
    overrides = read_overrides(options.overrides, options.config_dir, multirun=options.multirun)
    if options.multirun and launch.world_size() > 1:
        raise UserError("-m starts runs one after the other, torchrun processes of one; start torchrun for each run")
    if options.multirun and options.report:
        raise UserError("--report belongs to a single run; with -m, afterwards: smope report runs/<name>")
    if options.multirun:
        return _train_many(overrides, ["smope", "train", *argv], options.dry_run)
    if "sweep" in overrides.given:
        raise UserError(f"sweep={_value(overrides, 'sweep')} is many runs; add -m")
    config, run_dir, resume = plan(overrides)
    _hand_over(config, run_dir, resume=resume, dry_run=options.dry_run)
    if options.report and not options.dry_run and launch.rank() == 0:
        from smope.commands.report import run as report

        report([str(run_dir)])
    return 0


def plan(overrides: Overrides) -> tuple[Config, Path, bool]:
    """What the overrides ask for: a configuration, its run directory, and whether to resume there."""
    resumed = _value(overrides, "resume")
    if resumed is not None:
        check_rule("resume", resumed)
        run_dir = Path(resumed).expanduser()
        return _resumed_config(overrides, run_dir), run_dir, True
    config = compose(overrides)
    return config, new_run_dir(config), False


def new_run_dir(config: Config) -> Path:
    """`run_dir` where it is set, else runs/<name>/<time>. Nothing is created; a folder in use is refused."""
    if config.run_dir is None:
        folder = RUNS / config.name
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        taken = (folder / (stamp if number == 1 else f"{stamp}_{number}") for number in range(1, sys.maxsize))
        return next(path for path in taken if not path.exists())
    path = Path(config.run_dir).expanduser()
    if launch.rank() == 0:  # the others of one run may find what it has begun already
        RunDirectory.check_free(path)
    return path


def _parser() -> Parser:
    parser = Parser(
        "smope train",
        "Train a method on a stream of tasks. Without overrides: SMoPE on handwritten digits.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a group's choice or a key's value")
    parser.add_argument(
        "--dry-run", action="store_true", help="show configuration, tasks and cost; train and write nothing"
    )
    parser.add_argument("--report", action="store_true", help="write the run's report.html when it has finished")
    parser.add_argument("-m", "--multirun", action="store_true", help="one run for each combination of key=a,b values")
    parser.add_argument(
        "--config-dir", metavar="DIR", help="a folder of your own laid out like conf/, searched as well"
    )
    return parser


def _hand_over(config: Config, run_dir: Path, *, resume: bool = False, dry_run: bool = False) -> dict[str, Any] | None:
    """The first import of torch: everything that can be refused without it has been."""
    if dry_run and launch.rank() > 0:
        return None
    from smope.session import describe, train

    if dry_run:
        print(describe(config))
        return None
    return train(config, run_dir, resume=resume)


def _value(overrides: Overrides, key: str) -> Any:
    """What the user wrote for `key`, the last time."""
    values = [item.value() for item in overrides.parsed if item.key_or_group == key]
    return values[-1] if values else None


def _resumed_config(overrides: Overrides, run_dir: Path) -> Config:
    """The configuration that `run_dir` holds; overrides may say where things are now, and not change anything else."""
    RunDirectory.open(run_dir, "resume")
    settings = flatten(read_config(run_dir))
    given = sorted(key for key in overrides.given if may_move(key, settings))  # a group comes before its keys
    moved = {key: _value(overrides, key) for key in given}
    if "tracker" in moved:
        moved["tracker"] = compose_values(overrides)["tracker"]
    saved = load_config(run_dir, moved=moved)
    changed = _changed(overrides, saved)
    if changed:
        raise UserError(
            f"resume={run_dir} continues with that run's own configuration, but {', '.join(changed)} "
            "differs from it; leave the override out, or start a new run (where things are, workers, device, "
            "checkpoints and tracker may change)"
        )
    return saved


def _changed(overrides: Overrides, saved: Config) -> list[str]:
    """What the overrides set otherwise than the saved configuration has it, as key=value.

    A chosen group sets all its keys, an experiment those in which it differs from the defaults.
    """
    asked, defaults = _flat_values(overrides), _flat_values(Overrides([], [], overrides.config_dirs))
    named = overrides.given
    old = flatten(saved.as_dict())
    changed = []
    for key, value in asked.items():
        is_set = key in named or key.partition(".")[0] in named or value != defaults.get(key)
        if is_set and value not in (MISSING, old.get(key)) and not (key in ("resume", "run_dir") or may_move(key, old)):
            changed.append(f"{key}={shown(value)}")
    return changed


def _flat_values(overrides: Overrides) -> dict[str, Any]:
    values = compose_values(overrides)
    absolute_paths(values)
    return flatten(values)


def _train_many(overrides: Overrides, command: Sequence[str], dry_run: bool) -> int:
    """Every combination is a run of its own, kept in a place that only its configuration decides about."""
    from smope.sweeps.driver import run_sweep

    for key in ("run_dir", "resume"):
        if _value(overrides, key) is not None:
            raise UserError(
                f"{key} belongs to a single run; with -m each has its own folder in runs/<name>/, and the same command "
                "goes on with all of them: leave it out"
            )
    return run_sweep(overrides, command, _show if dry_run else None)


def _show(config: Config, run_dir: Path) -> None:
    _hand_over(config, run_dir, dry_run=True)
