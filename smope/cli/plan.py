"""`smope plan`: the time, memory and cost of a run or a sweep, before it is started."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smope.cli.chosen_run import chosen_run
from smope.cli.parser import Parser
from smope.config.config import Config
from smope.config.hydra import compose, with_sweep
from smope.config.overrides import Overrides, combinations, read_overrides
from smope.errors import UserError
from smope.planning.hardware import UTILISATION, listing, peak
from smope.planning.same_work import work_key
from smope.storage.run_directory import RunDirectory

EPILOG = f"""\
Steps, images, operations and memory are counted, on the objects of the run. Seconds come from one
of three sources:
  (nothing)         a few steps are timed here, some seconds for each phase
  --from RUN        the rates of a finished run, scaled by the operations of an image
  --hardware NAME   the vendor's peak rate times a share of it (--utilisation, {UTILISATION:g})
Each line says which it is. Runs of a sweep that differ only in seed, names or places are planned
once.

examples:
  smope plan                                               the demo, measured here
  smope plan experiment=paper_cifar100 stream.root=~/cifar100 --hardware a100 --price 2.5
  smope plan method=smope,coda seed=0,1,2                  a sweep
  smope plan sweep=ablation_small                          one of conf/sweep
  smope plan trainer.epochs=20 --from runs/digits/2026-01-31_12-00-00
  smope plan --classes 20000 --images 14000000 --tasks 100 backbone=sup21k --hardware h100
  smope plan --list                                        the table of hardware"""


PAPER_OPTIONS = {
    "classes": "its classes, divided evenly over the tasks",
    "images": "its training images, divided evenly",
    "tasks": "its tasks",
    "test-images": "its test images; 50 for each class by default",
}


def run(argv: Sequence[str]) -> int:
    """Entry point of the command; returns the exit code."""
    options = _parser().parse_intermixed_args(argv)
    if options.list:
        print(listing())
        return 0
    _check(options)
    groups = _groups(
        with_sweep(read_overrides(options.overrides, options.config_dir, multirun=True))
    )
    record = _record(options.source) if options.source else None
    if options.hardware:
        for config, _ in groups:
            peak(options.hardware, config.trainer["precision"])
    from smope.planning.at_once import at_once_line
    from smope.planning.lines import as_dict, lines, total
    from smope.planning.make_plan import make_plan
    from smope.planning.paper_stream import PaperStream

    paper = None
    if options.classes is not None:
        paper = PaperStream(options.classes, options.images, options.tasks, options.test_images)
        paper.check()
    plans = []
    for config, labels in groups:
        plans.append(
            make_plan(
                config, labels, record, options.source, options.hardware, options.utilisation, paper
            )
        )
        if not options.json:
            print("\n".join([*lines(plans[-1]), ""]), flush=True)
    if options.json:
        print(json.dumps([as_dict(item) for item in plans], indent=1, ensure_ascii=False))
    else:
        fits = []
        if options.at_once:
            start = f"hydra/launcher=one_gpu hydra.launcher.n_jobs={options.at_once}"
            fits = [f"{at_once_line(plans, options.at_once)}; start them with {start}"]
        print("\n".join([*total(plans, options.price), *fits, "nothing was trained or written"]))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "smope plan",
        "Estimate time, memory and cost of a run or a sweep before it is started.",
        EPILOG,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="as for `smope train`; a,b for a sweep"
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="accepted and not needed: a,b is a sweep here"
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="RUN",
        help="take the rates of this finished run",
    )
    parser.add_argument(
        "--hardware", metavar="NAME", help="take a peak rate from the table that --list shows"
    )
    parser.add_argument(
        "--utilisation", type=float, metavar="SHARE", help="of the peak, with --hardware"
    )
    sizes = parser.add_argument_group("a stream of which only the sizes are known")
    for name, meaning in PAPER_OPTIONS.items():
        sizes.add_argument(f"--{name}", type=int, metavar="N", help=meaning)
    parser.add_argument(
        "--at-once", type=int, metavar="K", help="check that K of the runs fit into the memory"
    )
    parser.add_argument(
        "--price", type=float, metavar="P", help="of an hour of the machine, in your currency"
    )
    parser.add_argument(
        "--list", action="store_true", help="the table of hardware, with its sources"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_config_dir()
    return parser


def _check(options: Any) -> None:
    _check_paper(options)
    if options.at_once is not None and (options.at_once < 1 or options.source):
        raise UserError(
            f"--at-once {options.at_once} must be 1 or more, and goes with --hardware or with what "
            f"is measured here, not with --from, which knows no memory"
        )
    if options.source and options.hardware:
        raise UserError("--from and --hardware are two sources of one rate; leave one of them out")
    if options.utilisation is not None and not options.hardware:
        raise UserError("--utilisation belongs to --hardware; add it, or leave --utilisation out")
    if options.utilisation is not None and not 0 < options.utilisation <= 1:
        raise UserError(
            f"--utilisation must be above 0 and at most 1, got {options.utilisation:g}; write 0.3"
        )
    if options.price is not None and not (math.isfinite(options.price) and options.price >= 0):
        raise UserError(
            f"--price must be a finite number, 0 or more, got {options.price:g}; write for "
            f"example 2.5"
        )


def _check_paper(options: Any) -> None:
    """The sizes of a stream without images come together, and with a rate from elsewhere."""
    given = [name for name in PAPER_OPTIONS if getattr(options, name.replace("-", "_")) is not None]
    missing = [name for name in ("classes", "images", "tasks") if name not in given]
    if given and missing:
        raise UserError(
            f"--{given[0]} describes a stream without images, which needs --{missing[0]} too; add "
            f"it, or leave --{given[0]} out and plan with stream=NAME"
        )
    if given and not (options.hardware or options.source):
        raise UserError(
            f"--{given[0]}: a stream without images has nothing to measure; add --hardware NAME "
            f"(--list shows them) or --from RUN"
        )


def _groups(overrides: Overrides) -> list[tuple[Config, list[str]]]:
    """Configurations that take different work, each with the overrides of its runs."""
    swept = [item.key_or_group for item in overrides.parsed if item.is_sweep_override()]
    groups: dict[str, tuple[Config, list[str]]] = {}
    singles = list(combinations(overrides))
    if not singles:
        raise UserError(
            "a sweep whose values a sweeper decides cannot be planned; write its values as a,b"
        )
    for single in singles:
        config = compose(single)
        texts = [text.lstrip("+") for text in single.texts]
        label = " ".join(text for text in texts if text.partition("=")[0] in swept)
        _, labels = groups.setdefault(work_key(config), (config, []))
        labels.append(label or "as given")
    return list(groups.values())


def _record(path: Path) -> dict[str, Any]:
    """run.json of a finished run."""
    path = chosen_run(path, "--from")
    record = RunDirectory.open(path, "--from").read_record()
    if record.get("status") != "finished":
        raise UserError(
            f"--from {path}: is not finished, so its rates are not known; name a finished run"
        )
    return record
