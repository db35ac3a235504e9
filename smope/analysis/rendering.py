"""Result tables and their comparisons as text, Markdown, CSV and LaTeX. Imports no pandas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from smope.analysis.tables import (
    UPPER_BOUNDS,
    Cell,
    Column,
    ResultTable,
    all_columns,
    table_differences,
)
from smope.console.markup import Grid, aligned, csv_grid, latex_grid, markdown_grid

if TYPE_CHECKING:
    from smope.analysis.significance import ComparedRow, TableComparison

FORMATS = ("text", "markdown", "csv", "latex")
FORMAT_OF_SUFFIX = {".txt": "text", ".md": "markdown", ".csv": "csv", ".tex": "latex"}
CSV_COMPARISON_COLUMNS = (
    "FAA low", "FAA high", "against", "pairs", "difference", "difference low", "difference high",
    "p", "p Holm",
)  # fmt: skip


def render(
    tables: Sequence[ResultTable],
    left_out: Sequence[str],
    form: str,
    ddof: int,
    comparisons: Sequence[TableComparison | None] | None = None,
) -> str:
    """All tables in one format.

    Args:
        tables: The tables.
        left_out: A line for each run that is in no table.
        form: One of FORMATS. CSV has the rows of all tables and nothing else; the other formats
            have notes and comparisons below each table.
        ddof: Standard deviations divide by n - ddof.
        comparisons: The comparison of each table, None for one without.
    """
    comparisons = comparisons or [None for _ in tables]
    if form == "csv":
        return _csv(tables, ddof, comparisons)
    comment = COMMENTS[form]
    parts = []
    if len(tables) > 1:
        head = f"{len(tables)} tables, for their runs cannot be compared; they differ in"
        parts.append(_commented([head, *table_differences(tables)], comment))
    for table, comparison in zip(tables, comparisons, strict=True):
        parts += [TITLES[form](table.title), _table_grid(table, form, ddof)]
        parts.append(_commented([_legend(table, ddof), *table.notes], comment))
        if comparison is not None:
            parts.append(_drawn(comparison_grid(comparison), form))
            parts.append(_commented(explanations(comparison), comment))
    if left_out:
        parts.append(_commented([f"left out, {len(left_out)} in all:", *left_out], comment))
    return "\n\n".join(parts)


def remarks(tables: Sequence[ResultTable], left_out: Sequence[str]) -> list[str]:
    """What a table of numbers alone does not say, a line each.

    Args:
        tables: The tables, whose notes are among the lines.
        left_out: A line for each run that is in no table.
    """
    apart = []
    if len(tables) > 1:
        apart = [f"tables differ in {line}" for line in table_differences(tables)]
    notes = [note for table in tables for note in table.notes]
    return [*apart, *notes, *(f"left out: {line}" for line in left_out)]


def _latex_comment(text: str) -> str:
    return f"% {text}"


COMMENTS: dict[str, Callable[[str], str]] = {
    "text": str,
    "markdown": lambda text: f"- {text}",
    "latex": _latex_comment,
}
TITLES: dict[str, Callable[[str], str]] = {
    "text": str,
    "markdown": lambda text: f"### {text}",
    "latex": _latex_comment,
}


def _commented(lines: Sequence[str], comment: Callable[[str], str]) -> str:
    return "\n".join(map(comment, lines))


def _legend(table: ResultTable, ddof: int) -> str:
    text = (
        f"percent; mean ± standard deviation over seeds (ddof {ddof}); "
        f"the best of each score is marked"
    )
    bounds = [row.label for row in table.rows if row.method in UPPER_BOUNDS]
    if bounds:
        text += f", {', '.join(bounds)} apart, which see earlier images again"
    return text


def _table_grid(table: ResultTable, form: str, ddof: int) -> str:
    """One table; columns that no run recorded are left out."""
    columns = _recorded_columns([table])
    best = {column.key: _best_labels(table, column, ddof) for column in columns}
    lines = [["method", "seeds", *(column.title for column in columns)]]
    bold = []
    for row in table.rows:
        cells = [row.label, _seed_range([*row.runs])]
        for column in columns:
            text = _cell_text(row.cell(column, ddof), column)
            if row.label in best[column.key]:
                bold.append((len(lines), len(cells)))
                text = _marked(text, form)
            cells.append(text)
        lines.append(cells)
    return _drawn(lines, form, bold)


def _marked(text: str, form: str) -> str:
    """The text of a best cell; LaTeX sets it in bold later, when it is escaped."""
    if form == "text":
        return f"{text} *"
    return f"**{text}**" if form == "markdown" else text


def _drawn(lines: Grid, form: str, bold: Sequence[tuple[int, int]] = ()) -> str:
    if form == "latex":
        return latex_grid(lines, bold)
    return aligned(lines) if form == "text" else markdown_grid(lines)


def _csv(
    tables: Sequence[ResultTable], ddof: int, comparisons: Sequence[TableComparison | None]
) -> str:
    """The rows of all tables, numbers unrounded; `best` names the scores in which a row is best."""
    columns = _recorded_columns(tables)
    head = ["table", "method", "seeds"]
    for column in columns:
        head += [column.title, f"{column.title} std"] if column.has_spread else [column.title]
    head.append("best")
    if any(comparisons):
        head += CSV_COMPARISON_COLUMNS
    lines = [head]
    for table, comparison in zip(tables, comparisons, strict=True):
        best = {column.title: _best_labels(table, column, ddof) for column in columns}
        compared = {row.row.label: row for row in comparison.rows} if comparison else {}
        for row in table.rows:
            line = [table.title, row.label, " ".join(map(str, row.runs))]
            for column in columns:
                cell = row.cell(column, ddof)
                line.append(_number(cell.mean))
                if column.has_spread:
                    line.append(_number(cell.std))
            line.append(" ".join(title for title, labels in best.items() if row.label in labels))
            if any(comparisons):
                line += _comparison_cells(compared.get(row.label), comparison)
            lines.append(line)
    return csv_grid(lines)


def _comparison_cells(row: ComparedRow | None, comparison: TableComparison | None) -> list[str]:
    """The cells below CSV_COMPARISON_COLUMNS."""
    if row is None or comparison is None:
        return [""] * len(CSV_COMPARISON_COLUMNS)
    interval, test = [_number(row.low), _number(row.high)], row.against
    if test is None or comparison.reference is None:
        return [*interval, *[""] * (len(CSV_COMPARISON_COLUMNS) - len(interval))]
    numbers = (test.difference, test.low, test.high, test.p, row.holm)
    return [*interval, comparison.reference.label, str(test.pairs), *map(_number, numbers)]


def _recorded_columns(tables: Sequence[ResultTable]) -> list[Column]:
    rows = [row for table in tables for row in table.rows]
    return [column for column in all_columns() if any(row.values(column) for row in rows)]


def _best_labels(table: ResultTable, column: Column, ddof: int) -> set[str]:
    """Labels of the rows that are best as printed; none if there is nothing to compare."""
    rivals = [row for row in table.rows if row.method not in UPPER_BOUNDS]
    if column.better is None or len(rivals) < 2:
        return set()
    means = {row.label: row.cell(column, ddof).mean for row in rivals}
    rounded = {
        label: round(mean, column.digits) for label, mean in means.items() if mean is not None
    }
    choose = max if column.better == "high" else min
    best = choose(rounded.values(), default=None)
    return {label for label, value in rounded.items() if value == best}


def _cell_text(cell: Cell, column: Column) -> str:
    if cell.mean is None:
        return "-"
    spread = "" if cell.std is None else f" ± {cell.std:.{column.digits}f}"
    return f"{cell.mean:,.{column.digits}f}{spread}"


def _number(value: float | None) -> str:
    return "" if value is None else repr(round(value, 6))


def _seed_range(seeds: Sequence[int]) -> str:
    """0-4 if the seeds follow each other, else 0,2,5."""
    if len(seeds) > 1 and list(seeds) == [*range(seeds[0], seeds[-1] + 1)]:
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))


def comparison_grid(comparison: TableComparison) -> list[list[str]]:
    """The comparison of a table as lines of cells, the head first."""
    head = ["FAA", "n", "95 % interval"]
    if comparison.reference is not None and comparison.tests:
        difference = f"minus {comparison.reference.label}"
        head += [difference, "95 % interval", "pairs", "p", "p (Holm)"]
    lines = [head]
    for row in comparison.rows:
        interval = "-" if row.low is None else f"{row.low:.2f} to {row.high:.2f}"
        cells = ["-"] * (len(head) - 3)
        test = row.against
        if test is not None:
            cells = [
                f"{test.difference:+.2f}",
                f"{test.low:+.2f} to {test.high:+.2f}",
                str(test.pairs),
                f"{test.p:.3g}",
                f"{row.holm:.3g}",
            ]
        lines.append([row.row.label, str(row.seeds), interval, *cells])
    return lines


def explanations(comparison: TableComparison) -> list[str]:
    """How the numbers of `comparison_grid` were computed, and what they cannot say."""
    lines = ["interval of a mean: Student's t over n seeds (ddof 1), cut to 0..100"]
    if comparison.has_few_seeds:
        lines.append(
            "n = 2: two seeds say next to nothing of the spread (t = 12.7); take five or more"
        )
    if comparison.reference is None:
        return [*lines, "no differences: this table has no row to compare with"]
    label = comparison.reference.label
    if not comparison.tests:
        return [*lines, f"no differences: no other row shares two seeds with {label}"]
    bias = ""
    if not comparison.named_by_user:
        bias = ", the best by its mean, which makes differences look larger than they are"
    tests = f"{comparison.tests} test{'s' if comparison.tests > 1 else ''}"
    lines += [
        f"difference to {label}{bias}: paired by seed, bootstrap interval over pairs (too narrow "
        f"where these are few)",
        f"p: exchanging the two runs of a pair at random, two-sided; corrected by Holm for {tests}",
    ]
    least = comparison.smallest_p
    if least * comparison.tests > 0.05:
        lines.append(
            f"with {comparison.most_pairs} seeds no p below {least:.3g} can come out, before the "
            f"correction: more seeds are needed to call any difference here more than chance"
        )
    return lines
