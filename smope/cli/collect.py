"""`smope collect RUNS…`: finished runs as one table of methods, with mean and spread over seeds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smope.analysis.loading import find_runs, read_finished
from smope.analysis.rendering import FORMAT_OF_SUFFIX, FORMATS, remarks, render
from smope.analysis.run_list import (
    RUN_LIST_SUFFIXES,
    missing_job_lines,
    missing_jobs,
    run_list,
    write_run_list,
)
from smope.analysis.tables import ResultTable, require_row, result_tables, with_common_seeds
from smope.cli.parser import Parser
from smope.errors import UserError
from smope.storage.files import write_atomically

if TYPE_CHECKING:
    from smope.analysis.significance import TableComparison

EPILOG = """\
A row is a method with its settings, averaged over seeds; rows of one method name the settings in
which they differ. Runs on other images, tasks or backbones get a table of their own, headed by what
differs. Two runs of one configuration and seed count once if their numbers are equal; if not, one
of them has to be left out. Below a table: intervals of the means, tests against the best row (or
--against) paired by seed and corrected for their number, and what is missing: seeds that a method
lacks, runs that are unfinished or failed, runs that a sweep planned, numbers that an older run did
not record. FAA and CAA count tasks equally; AIA counts images equally and is the average accuracy
that PyCIL and PILOT print.

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
    _check_run_list_suffix(args.runs_file)
    paths = find_runs(args.runs)
    finished, left_out = read_finished(paths)
    jobs = missing_jobs(paths, map(Path, args.runs))
    left_out += missing_job_lines(jobs)
    if args.runs_file is not None:
        lines = run_list(paths, jobs)
        _write_file(args.runs_file, "--runs", lambda path: write_run_list(path, lines))
        counts = f"{len(lines)} runs, {len(finished)} of them finished"
        print(f"{args.runs_file}: {counts}", file=sys.stderr)
    if not finished:
        raise UserError(f"RUNS: none of {len(paths)} runs can be used: {'; '.join(left_out)}")
    tables = result_tables(
        with_common_seeds(finished) if args.common_seeds else finished, args.ddof
    )
    text = render(tables, left_out, form, args.ddof, _comparisons(tables, args.against))
    if args.out is None:
        print(text)
    else:
        content = f"{text}\n".encode()
        _write_file(args.out, "--out", lambda path: write_atomically(path, content))
        print(f"{args.out}: {len(finished)} runs, {sum(len(table.rows) for table in tables)} rows")
    if form == "csv" or args.out is not None:
        for remark in remarks(tables, left_out):
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
        help="a run directory, a folder with some below it, a glob, or latest",
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
        dest="runs_file",
        type=Path,
        metavar="FILE",
        help="also write every run, finished or not (.csv, .parquet)",
    )
    return parser


def _check_run_list_suffix(path: Path | None) -> None:
    if path is not None and path.suffix not in RUN_LIST_SUFFIXES:
        raise UserError(
            f"--runs {path}: no format has the suffix {path.suffix!r}; use one of "
            f"{', '.join(RUN_LIST_SUFFIXES)}"
        )


def _format(form: str | None, out: Path | None) -> str:
    if form is not None or out is None:
        return form or "text"
    if out.suffix not in FORMAT_OF_SUFFIX:
        raise UserError(
            f"--out {out}: no format has the suffix {out.suffix!r}; use one of "
            f"{', '.join(FORMAT_OF_SUFFIX)}"
        )
    return FORMAT_OF_SUFFIX[out.suffix]


def _comparisons(
    tables: Sequence[ResultTable], against: str | None
) -> list[TableComparison | None]:
    """The comparison of each table; scipy is imported only if some row has two seeds."""
    if against is not None:
        require_row(tables, against)
    if all(len(row.runs) < 2 for table in tables for row in table.rows):
        return [None for _ in tables]
    from smope.analysis.significance import compare_rows

    return [compare_rows(table, against) for table in tables]


def _write_file(path: Path, option: str, write: Callable[[Path], object]) -> None:
    """Write a file; UserError that names the option if it cannot be written."""
    try:
        write(path.expanduser())
    except OSError as error:
        raise UserError(
            f"{option} {path}: cannot be written ({error.strerror}); name another file"
        ) from error
