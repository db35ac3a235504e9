"""`smope train`: checks the configuration, chooses the run directory, and starts the run."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from smope.cli.parser import Parser
from smope.config.config import Config
from smope.config.hydra_flags import CFG, INFO, show_composed, show_hydra_info
from smope.config.overrides import Overrides, read_overrides
from smope.distributed import torchrun
from smope.errors import UserError
from smope.run.plan import override_value, plan
from smope.run.quick_import import quick_imports


def run(argv: Sequence[str]) -> int:
    """Entry point of the command; returns the exit code."""
    if "-h" in argv or "--help" in argv:
        from smope.cli.train_help import train_help

        print(train_help(_parser()))
        return 0
    options = _parser().parse_intermixed_args(argv)
    overrides = read_overrides(options.overrides, options.config_dir, multirun=options.multirun)
    if options.cfg or options.info or options.package or options.resolve:
        return _show_configuration(overrides, options)
    if options.multirun and torchrun.world_size() > 1:
        raise UserError(
            "-m starts runs one after the other, torchrun processes of one; start torchrun for "
            "each run"
        )
    if options.multirun and (options.report or options.explain):
        flag = "--report" if options.report else "--explain"
        raise UserError(
            f"{flag} belongs to a single run; with -m, afterwards: smope report runs/<name>"
        )
    if options.multirun:
        return _train_many(overrides, ["smope", "train", *argv], options.dry_run)
    if "sweep" in overrides.given:
        raise UserError(f"sweep={override_value(overrides, 'sweep')} is many runs; add -m")
    config, run_dir, resume = plan(overrides)
    wanted = {"dry_run": options.dry_run, "explain": options.explain}
    record = _train(config, run_dir, overrides.given, resume=resume, **wanted)
    if record and not options.dry_run and torchrun.rank() == 0:
        _report(record, run_dir, options)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "smope train",
        "Train a method on a stream of tasks. Without overrides: SMoPE on handwritten digits.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="a group's choice or a key's value"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show configuration, tasks and cost; train and write nothing",
    )
    parser.add_argument(
        "--report", action="store_true", help="write the run's report.html when it has finished"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="for a first run: print what will happen, what the numbers mean and what to type "
        "next, without details; writes the report as well",
    )
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="one run for each combination of key=a,b values",
    )
    parser.add_config_dir()
    parser.add_argument(
        "-c",
        "--cfg",
        choices=CFG,
        help="print the composed configuration: the run's, Hydra's own, or all; nothing else",
    )
    parser.add_argument("--resolve", action="store_true", help="with --cfg: replace ${...}")
    parser.add_argument("-p", "--package", help="with --cfg: this part alone, such as trainer")
    parser.add_argument(
        "-i",
        "--info",
        nargs="?",
        const="all",
        choices=INFO,
        help="print how the configuration is composed: defaults, search path, plugins",
    )
    parser.add_argument(
        "-sc",
        "--shell-completion",
        action="store_true",
        help="install=bash, zsh or fish: print the script that completes `smope` in that shell",
    )
    return parser


def _show_configuration(overrides: Overrides, options: Namespace) -> int:
    """Print what --cfg or --info asks for. Returns the exit code."""
    flag = "--cfg" if options.cfg else "--info"
    if not options.cfg and not options.info:
        flag = "--package" if options.package else "--resolve"
        raise UserError(f"{flag} belongs to --cfg; add --cfg job, or leave it out")
    if options.multirun or override_value(overrides, "resume") is not None:
        raise UserError(
            f"{flag} shows the configuration of one new run; leave -m and resume= out (a run has "
            f"its own in config.yaml)"
        )
    if options.cfg:
        show_composed(overrides, options.cfg, options.package, resolve=options.resolve)
    else:
        show_hydra_info(overrides, options.info)
    return 0


def _train(
    config: Config,
    run_dir: Path,
    given: Collection[str] = (),
    *,
    resume: bool = False,
    dry_run: bool = False,
    explain: bool = False,
) -> dict[str, Any] | None:
    """Run, or show what a run would do. torch is imported here, after all that needs no torch."""
    if dry_run and torchrun.rank() > 0:
        return None
    if "torch" not in sys.modules and torchrun.rank() == 0:
        print("loading PyTorch and the images", flush=True)
    with quick_imports():
        from smope.run.dry_run import describe
        from smope.run.train import train

    if dry_run:
        print(describe(config, given))
        return None
    return train(config, run_dir, resume=resume, given=given, explain=explain)


def _report(record: dict[str, Any], run_dir: Path, options: Namespace) -> None:
    """Write the run's page if it was asked for, and say where it is or what to do next."""
    if not options.explain:
        if options.report:
            from smope.cli.report import run as report

            report([str(run_dir)])
        return
    from smope.analysis.loading import load_runs
    from smope.report.write import write_report
    from smope.run.explain import next_steps

    page = write_report(load_runs(run_dir), run_dir / "report.html")
    print(next_steps(record, page, options.overrides))


def _train_many(overrides: Overrides, command: Sequence[str], dry_run: bool) -> int:
    """Train every combination of values; the configuration of a run decides about its folder."""
    from smope.sweeps.driver import run_sweep

    for key in ("run_dir", "resume"):
        if override_value(overrides, key) is not None:
            raise UserError(
                f"{key} belongs to a single run; with -m each has its own folder in runs/<name>/, "
                f"and the same command continues with all of them: leave it out"
            )
    return run_sweep(overrides, command, _show if dry_run else None)


def _show(config: Config, run_dir: Path) -> None:
    _train(config, run_dir, dry_run=True)
