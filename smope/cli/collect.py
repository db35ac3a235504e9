"""`smope collect RUNS…`: finished runs into one table of methods, with mean and spread over seeds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from smope.analysis.collection import Run, find_runs, read_runs, tables
from smope.analysis.collection_comparison import contrast, require_row
from smope.analysis.collection_runs import SUFFIXES as RUN_SUFFIXES
from smope.analysis.collection_runs import (
    absent_lines,
    planned_but_absent,
    run_lines,
    write_run_lines,
)
from smope.analysis.collection_tables import FORMATS, SUFFIXES, remarks, render
from smope.cli.parser import Parser
from smope.errors import UserError
from smope.storage.files import write_atomically

EPILOG = """\
A row is a method with its settings, averaged over seeds; rows of one method say in which settings they differ. Runs on
other images, tasks or backbones get a table of their own, headed by what differs. Below a table: intervals of the
means, tests against the best row (or --against) paired by seed and corrected for their number, and what is missing:
seeds that a method lacks, runs that are unfinished or failed, runs that a sweep planned, numbers that an older run did
not record.

examples:
  smope collect runs/digits
  smope collect 'runs/*/2026-01-*' --format markdown --out results.md
  smope collect runs/digits --ddof 1 --format latex
  smope collect runs/digits --against finetune
  smope collect runs/digits --runs runs.parquet           every run in a line of its own"""


def run(argv: Sequence[str]) -> int:
    """Entry point of the command; returns the exit code."""
    args = _parser().parse_args(argv)
    form = _format(args.format, args.out)
    _check_run_file(args.lines)
    paths = find_runs(args.runs)
    finished, left_out = read_runs(paths)
    absent = planned_but_absent(paths, map(Path, args.runs))
    left_out += absent_lines(absent)
    if args.lines is not None:
        lines = run_lines(paths, absent)
        _told(args.lines, "--runs", lambda path: write_run_lines(path, lines))
        print(f"{args.lines}: {len(lines)} runs, {len(finished)} of them finished", file=sys.stderr)
    if not finished:
        raise UserError(f"RUNS: none of {len(paths)} runs can be used: {'; '.join(left_out)}")
    found = tables(_common(finished) if args.common_seeds else finished, args.ddof)
    if args.against is not None:
        require_row(found, args.against)
    contrasts = [contrast(table, args.against) for table in found]
    text = render(found, left_out, form, args.ddof, contrasts, args.against is not None)
    if args.out is None:
        print(text)
    else:
        _told(args.out, "--out", lambda path: write_atomically(path, (text + "\n").encode()))
        print(f"{args.out}: {len(finished)} runs, {sum(len(table.rows) for table in found)} rows")
    if form == "csv" or args.out is not None:
        for remark in remarks(found, left_out):
            print(remark, file=sys.stderr)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "smope collect", "Put finished runs into one table: methods by scores, over seeds.", EPILOG
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory, a folder with some below it, or a glob",
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="default: text, or what the suffix of --out says"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write there (.txt, .md, .csv, .tex)"
    )
    parser.add_argument(
        "--ddof",
        type=int,
        choices=(0, 1),
        default=0,
        help="standard deviation divides by n - DDOF (default: 0)",
    )
    parser.add_argument(
        "--common-seeds",
        action="store_true",
        help="use only the seeds that every row of a table has finished",
    )
    parser.add_argument(
        "--against",
        metavar="ROW",
        help="the row that the others are tested against (default: the best)",
    )
    parser.add_argument(
        "--runs",
        dest="lines",
        type=Path,
        metavar="FILE",
        help="also write every run, finished or not (.csv, .parquet)",
    )
    return parser


def _check_run_file(path: Path | None) -> None:
    if path is not None and path.suffix not in RUN_SUFFIXES:
        raise UserError(
            f"--runs {path}: no format has the suffix {path.suffix!r}; use one of "
            f"{', '.join(RUN_SUFFIXES)}"
        )


def _format(form: str | None, out: Path | None) -> str:
    if form is not None or out is None:
        return form or "text"
    if out.suffix not in SUFFIXES:
        raise UserError(
            f"--out {out}: no format has the suffix {out.suffix!r}; use one of "
            f"{', '.join(SUFFIXES)}"
        )
    return SUFFIXES[out.suffix]


def _common(runs: Sequence[Run]) -> list[Run]:
    """The runs whose seeds every row of their table has."""
    kept = []
    for table in tables(runs):
        seeds = [seed for seed in table.seeds if all(seed in row.runs for row in table.rows)]
        if not seeds:
            raise UserError(
                f"--common-seeds: no method shares a seed with all others on {table.title}; leave "
                f"it out"
            )
        kept += [row.runs[seed] for row in table.rows for seed in seeds]
    return kept


def _told(path: Path, option: str, write: Callable[[Path], object]) -> None:
    """Write a file; UserError, naming the option, where that cannot be."""
    try:
        write(path.expanduser())
    except OSError as error:
        raise UserError(
            f"{option} {path}: cannot be written ({error.strerror}); name another file"
        ) from error
