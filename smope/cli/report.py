"""`smope report RUN [RUN ...]`: one page about one run, or about many."""

from __future__ import annotations

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
        "  smope report runs/digits --out compare.html      every run below a folder, compared",
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
        help="the page (default: RUN/report.html for one run, else ./report.html)",
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
    out = options.out or ((runs[0].path if len(runs) == 1 else Path()) / "report.html")
    write_report(runs, out)
    print(f"report on {len(runs)} {'run' if len(runs) == 1 else 'runs'}: {out}")
    print(f"figures and tables: {out.with_suffix('')}/")
    return 0
