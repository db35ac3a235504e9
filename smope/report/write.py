"""Writing a report: the page, its figures as files, its main table as Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from smope.analysis.run import Run
from smope.console.markup import latex_grid, markdown_grid
from smope.errors import UserError
from smope.report.page import GENERATOR, page, sections
from smope.report.sections.accuracy import score_grid
from smope.report.style import png, svg, svg_file
from smope.storage.files import write_atomically


def write_report(runs: Sequence[Run], out: Path) -> Path:
    """Write the page, and beside it a folder with figures and the table of scores.

    An earlier report is replaced, including the figures that it names. Other files in the folder
    stay.

    Args:
        runs: The runs that the report is about.
        out: The HTML file; the folder has its name without the suffix.

    Returns:
        The path of the page.

    Raises:
        UserError: If `out` is a file that is no report, or cannot be written.
    """
    before = out.read_text(encoding="utf-8", errors="replace") if out.is_file() else ""
    if out.is_file() and GENERATOR not in before[:2000]:
        raise UserError(
            f"--out={out}: exists and was not written by smope report; name another file"
        )
    parts = sections(runs)
    folder = out.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in re.findall(r'<figure id="([\w-]+)">', before):
            for ending in ("png", "svg"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
        drawings: dict[str, str] = {}
        for figure in (figure for part in parts for figure in part.figures):
            drawings[figure.name] = svg(figure.drawing, figure.name)
            # the PNG has the layout of the SVG: finding it again takes half of the time
            figure.drawing.set_layout_engine("none")
            write_atomically(folder / f"{figure.name}.png", png(figure.drawing))
            write_atomically(
                folder / f"{figure.name}.svg", svg_file(drawings[figure.name]).encode()
            )
        grid = score_grid(runs)
        write_atomically(folder / "scores.md", (markdown_grid(grid) + "\n").encode())
        write_atomically(folder / "scores.tex", (latex_grid(grid) + "\n").encode())
        write_atomically(out, page(runs, parts, drawings, folder.name).encode())
    except OSError as error:
        raise UserError(
            f"--out={out}: cannot be written ({error.strerror}); name another file"
        ) from error
    return out
