"""`smope reproduce ROW`: train a published row, compare it with the published numbers."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smope.cli.parser import Parser
from smope.config.config import MISSING
from smope.console.markup import aligned
from smope.errors import UserError
from smope.metrics.scores import SCORES
from smope.reproduction.published import PublishedRow
from smope.reproduction.report import CHECKOUT, checkout_state, make_card, screen, write_card
from smope.reproduction.rows import ROWS
from smope.reproduction.run import (
    changes_of_runs,
    digest,
    plan_seed,
    read_finished_runs,
    require_images,
    row_settings,
    train_seeds,
)

# Keys of `smope train` that this command sets itself, and what to write instead.
RESERVED_KEYS = {
    "experiment": "ROW names the experiment",
    "seed": "say --seeds instead",
    "run_dir": "runs are kept in runs/<name>/seed-<n>: say name=... for another folder",
    "resume": "a run that was interrupted is continued by the same command",
}
LISTED_SCORES = ("final_average_accuracy", "cumulative_average_accuracy")
LISTED = """\
FAA and CAA as published, in percent; - where no number is recorded here.
stream.root is the folder of the data set, backbone.weights a file; other weights are downloaded
once, or read from backbone.weights. ImageNet-R needs the split lists published with CODA-Prompt, in
stream.root or stream.split_lists.

example: smope reproduce paper_cifar100 stream.root=~/cifar100"""
EPILOG = """\
Each seed is a run directory runs/ROW/seed-N. The same command can be given again: finished seeds
are not repeated, and an interrupted one continues after its last checkpoint. So seeds can also be
divided among machines. If settings are changed, the card names them and claims no reproduction.

examples:
  smope reproduce --list
  smope reproduce paper_cifar100 stream.root=~/cifar100
  smope reproduce paper_cifar100 stream.root=~/cifar100 trainer.device=cuda:1 --seeds 3,4
  smope reproduce paper_cifar100 --check run_a run_b     compare runs that exist

exit code: 0 done, 1 a score is outside, 2 a mistake, 130 interrupted"""


def run(argv: Sequence[str]) -> int:
    """Entry point of the command; returns the exit code, 1 if a score is outside."""
    options = _parser().parse_intermixed_args(argv)
    if options.list:
        print(_listing(options.config_dir))
        return 0
    row, seeds = _row(options.row), parse_seeds(options.seeds)
    _refuse_reserved_keys(options.overrides, options.check)
    folder = _card_folder(options.out)
    command = ["smope", "reproduce", *argv]
    if options.check:
        records = read_finished_runs(options.check)
    else:
        seed_runs = [
            plan_seed(options.row, options.overrides, seed, options.config_dir) for seed in seeds
        ]
        require_images(row, seed_runs)
        records = train_seeds(seed_runs, shlex.join(command), _print_line)
    changed = changes_of_runs(row, row_settings(options.row, options.config_dir), records)
    card = make_card(options.row, row, records, changed, command, checkout_state())
    path = write_card(card, folder / _card_name(options.row, changed, card))
    print(f"\n{screen(card)}\n\ncard: {path} (and .json)")
    return 1 if card["verdict"] == "outside" else 0


def _print_line(text: str) -> None:
    print(text, flush=True)


def _parser() -> Parser:
    parser = Parser(
        "smope reproduce",
        "Run a published row for each seed, compare the scores with the published ones, and "
        "write a card.",
        EPILOG,
    )
    parser.add_argument("row", nargs="?", metavar="ROW", help="a name that --list shows")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `smope train`")
    parser.add_argument(
        "--list", action="store_true", help="the rows, what each needs and what was published"
    )
    parser.add_argument(
        "--seeds", default="0-4", help="such as 0-4, the paper's and the default, or 0,2"
    )
    parser.add_argument(
        "--check",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="compare these finished runs, run nothing",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the card goes (default: benchmarks/results of a checkout, or here)",
    )
    parser.add_config_dir()
    return parser


def parse_seeds(text: str) -> list[int]:
    """0-4, 0,2 or a mixture as ascending numbers; UserError for anything else."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(
                f"--seeds {text}: must be numbers or ascending ranges; write for example --seeds "
                f"0-4 or 0,2"
            )
        seeds |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(seeds)


def _listing(config_dir: str | None) -> str:
    """The rows, what they need, and what was published; needs no torch."""
    lines = [
        ["row", "data", "tasks", "backbone"]
        + [SCORES[name].short for name in LISTED_SCORES]
        + ["source", "needs"]
    ]
    for name, row in ROWS.items():
        settings = row_settings(name, config_dir)
        needs = [key for key in reversed(settings) if settings[key] == MISSING]
        published = [str(row.paper.get(score, "-")) for score in LISTED_SCORES]
        stream = [str(settings[f"stream.{key}"]) for key in ("name", "num_tasks")]
        cells = [name, *stream, settings["backbone.name"], *published, row.source]
        lines.append([*cells, ", ".join(needs)])
    return f"{aligned(lines)}\n\n{LISTED}"


def _row(name: str | None) -> PublishedRow:
    if name is None or "=" in name:
        raise UserError(
            "smope reproduce: ROW is missing; `smope reproduce --list` shows the rows and what "
            "each needs"
        )
    if name not in ROWS:
        near = difflib.get_close_matches(name, ROWS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(ROWS)}"
        raise UserError(f"ROW={name}: no such row was published; {hint}")
    return ROWS[name]


def _refuse_reserved_keys(overrides: Sequence[str], check: Sequence[Path] | None) -> None:
    for text in overrides:
        key = text.lstrip("+").partition("=")[0]
        if key in RESERVED_KEYS:
            raise UserError(f"{text} belongs to `smope train`; {RESERVED_KEYS[key]}")
        if check:
            raise UserError(
                f"{text} has no effect with --check, which compares runs as they are; leave it out"
            )


def _card_folder(out: Path | None) -> Path:
    """The folder of the card, made before anything is trained so that a mistake shows at once.

    Without --out: benchmarks/results of the checkout that the user is in, else the current folder.
    """
    folder = out.expanduser() if out else Path()
    if out is None and (CHECKOUT / ".git").exists() and Path.cwd().is_relative_to(CHECKOUT):
        folder = Path(os.path.relpath(CHECKOUT / "benchmarks" / "results"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be made ({error.strerror}); name another folder"
        ) from error
    return folder


def _card_name(row: str, changed: Sequence[str], card: Mapping[str, Any]) -> str:
    parts = [row]
    if changed:
        parts += ["changed", digest(changed)]
    seeds = [str(run["seed"]) for run in card["runs"]]
    return "_".join([*parts, "seeds", *seeds])
