"""`smope collect RUNS…`: finished runs into one table of methods, with mean and spread over seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from smope.collection import Run, find_runs, read_runs, tables
from smope.collection_tables import FORMATS, SUFFIXES, remarks, render
from smope.commands import Parser
from smope.errors import UserError
from smope.runs import write_atomically

EPILOG = """\
A row is a method with its settings, averaged over seeds; rows of one method say in which settings they differ. Runs on
other images, tasks or backbones get a table of their own, headed by what differs. Unfinished runs, seeds that a method
lacks and numbers that an older run did not record are listed below the table.

examples:
  smope collect runs/digits
  smope collect 'runs/*/2026-01-*' --format markdown --out results.md
  smope collect runs/digits --ddof 1 --format latex"""


def run(argv: Sequence[str]) -> int:
    """Entry point of the command; returns the exit code."""
    args = _parser().parse_args(argv)
    form = _format(args.format, args.out)
    paths = find_runs(args.runs)
    finished, left_out = read_runs(paths)
    if not finished:
        raise UserError(f"RUNS: none of {len(paths)} runs can be used: {'; '.join(left_out)}")
    found = tables(_common(finished) if args.common_seeds else finished, args.ddof)
    text = render(found, left_out, form, args.ddof)
    if args.out is None:
        print(text)
    else:
        _write(args.out, text + "\n")
        print(f"{args.out}: {len(finished)} runs, {sum(len(table.rows) for table in found)} rows")
    if form == "csv" or args.out is not None:
        for remark in remarks(found, left_out):
            print(remark, file=sys.stderr)
    return 0


def _parser() -> Parser:
    parser = Parser("smope collect", "Put finished runs into one table: methods by scores, over seeds.", EPILOG)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run directory, a folder with some below it, or a glob"
    )
    parser.add_argument("--format", choices=FORMATS, help="default: text, or what the suffix of --out says")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there (.txt, .md, .csv, .tex)")
    parser.add_argument(
        "--ddof", type=int, choices=(0, 1), default=0, help="standard deviation divides by n - DDOF (default: 0)"
    )
    parser.add_argument(
        "--common-seeds", action="store_true", help="use only the seeds that every row of a table has finished"
    )
    return parser


def _format(form: str | None, out: Path | None) -> str:
    if form is not None or out is None:
        return form or "text"
    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: no format has the suffix {out.suffix!r}; use one of {', '.join(SUFFIXES)}")
    return SUFFIXES[out.suffix]


def _common(runs: Sequence[Run]) -> list[Run]:
    """The runs whose seeds every row of their table has."""
    kept = []
    for table in tables(runs):
        seeds = [seed for seed in table.seeds if all(seed in row.runs for row in table.rows)]
        if not seeds:
            raise UserError(f"--common-seeds: no method shares a seed with all others on {table.title}; leave it out")
        kept += [row.runs[seed] for row in table.rows for seed in seeds]
    return kept


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path.expanduser(), text.encode())
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror}); name another file") from error
