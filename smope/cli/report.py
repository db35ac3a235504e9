"""`smope report RUN [RUN ...]`: one page about one run, or about many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from smope.cli.parser import Parser
from smope.errors import UserError


def run(argv: Sequence[str]) -> int:
    """Entry point of the command: writes the page and prints its path."""
    parser = Parser(
        "smope report",
        "Write an HTML page about runs: accuracy, forgetting, where errors come from, experts,\n"
        "confidence, cost. It needs no network and no other file. Figures (PNG, SVG) and the\n"
        "table of scores (Markdown, LaTeX) go to a folder beside it.",
        "examples:\n"
        "  smope report runs/digits/2026-01-31_12-00-00     one run: report.html in its directory\n"
        "  smope report runs/digits                         every run below a folder, compared:\n"
        "                                                   runs/digits/report.html\n"
        "  smope report 'runs/*/2026-*' --out compare.html  runs of several folders",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory, a folder with some below it, or latest",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: report.html in the run, or in the folder that holds all the runs)",
    )
    options = parser.parse_args(argv)
    if options.out and (
        options.out.suffix.lower() not in (".html", ".htm") or options.out.is_dir()
    ):
        raise UserError(
            f"--out={options.out}: must be an HTML file; write for example --out "
            f"{options.out.stem}.html"
        )

    from smope.analysis.loading import load_runs
    from smope.report.write import write_report

    runs = load_runs(*options.runs)
    out = options.out or common_folder([run.path for run in runs]) / "report.html"
    write_report(runs, out)
    print(f"report on {len(runs)} {'run' if len(runs) == 1 else 'runs'}: {out}")
    print(f"figures and tables: {out.with_suffix('')}/")
    return 0


def common_folder(paths: Sequence[Path]) -> Path:
    """The run itself, or the innermost folder that holds all the runs.

    Runs that have nothing in common but the root of the file system give the current folder.
    """
    if len(paths) == 1:
        return paths[0]
    folder = Path(os.path.commonpath([path.absolute() for path in paths]))
    if folder == Path(folder.anchor):
        return Path()
    current = Path.cwd()
    return folder.relative_to(current) if folder.is_relative_to(current) else folder
