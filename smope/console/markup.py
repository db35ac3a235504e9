"""Tables, given as lines of cells with the head first, as text, Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

Grid = Sequence[Sequence[str]]

# Characters with a meaning of their own in LaTeX, and how they are written instead.
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def aligned(lines: Grid) -> str:
    """Text in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def markdown_grid(lines: Grid) -> str:
    """A Markdown table; a | within a cell is escaped."""
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    head, *body = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])


def csv_grid(lines: Grid) -> str:
    """Comma-separated values, quoted where needed, without a line break at the end."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue().rstrip("\n")


def latex_grid(lines: Grid, bold: Sequence[tuple[int, int]] = ()) -> str:
    """A tabular with the rules of booktabs.

    Args:
        lines: Lines of cells, the head first.
        bold: Cells in bold, as (line, column); the head is line 0.
    """
    rows = []
    for number, line in enumerate(lines):
        cells = [latex(cell) for cell in line]
        for column in range(len(cells)):
            if (number, column) in bold:
                cells[column] = rf"\textbf{{{cells[column]}}}"
        rows.append(rf"{' & '.join(cells)} \\")
    head, *body = rows
    columns = "l" + "r" * (len(lines[0]) - 1)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    pattern = "|".join(map(re.escape, LATEX_ESCAPES))
    return re.sub(pattern, lambda match: LATEX_ESCAPES[match[0]], text)
