"""Lines of cells, the head first, as plain text, Markdown, CSV or LaTeX. Imports no torch."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

Grid = Sequence[Sequence[str]]

# What LaTeX would take for a command, and how it is written instead.
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
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
    """A tabular with the rules of booktabs; `bold` names cells (line, column), the head being line
    0.
    """
    rows = [
        [
            rf"\textbf{{{latex(cell)}}}" if (number, column) in bold else latex(cell)
            for column, cell in enumerate(line)
        ]
        for number, line in enumerate(lines)
    ]
    head, *body = [rf"{' & '.join(row)} \\" for row in rows]
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
    """Text as LaTeX sets it."""
    return re.sub("|".join(map(re.escape, LATEX)), lambda match: LATEX[match[0]], text)
