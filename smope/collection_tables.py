"""Tables of collected runs as text, Markdown, CSV and LaTeX. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from smope.collection import BOUNDS, COLUMNS, Cell, Column, Row, Table, differences
from smope.report.grids import aligned, csv_grid, latex_grid, markdown_grid

FORMATS = ("text", "markdown", "csv", "latex")
SUFFIXES = {".txt": "text", ".md": "markdown", ".csv": "csv", ".tex": "latex"}


def render(tables: Sequence[Table], left_out: Sequence[str], form: str, ddof: int) -> str:
    """All tables in one of FORMATS. CSV holds rows alone, of all tables; the others say what is missing as well."""
    if form == "csv":
        return _csv(tables, ddof)
    comment: Callable[[str], str] = {"text": str, "markdown": _item, "latex": lambda text: f"% {text}"}[form]
    parts = []
    if len(tables) > 1:
        apart = [f"{len(tables)} tables, for their runs cannot be compared; they differ in", *differences(tables)]
        parts.append("\n".join(map(comment, apart)))
    for table in tables:
        parts += [_title(table.title, form), _grid(table, form, ddof)]
        parts.append("\n".join(map(comment, [_legend(table, ddof), *table.notes])))
    if left_out:
        parts.append("\n".join(map(comment, [f"left out, {len(left_out)} in all:", *left_out])))
    return "\n\n".join(parts)


def remarks(tables: Sequence[Table], left_out: Sequence[str]) -> list[str]:
    """What a table of numbers alone does not say."""
    apart = [f"tables differ in {line}" for line in differences(tables)] if len(tables) > 1 else []
    return [*apart, *(note for table in tables for note in table.notes), *(f"left out: {line}" for line in left_out)]


def _item(text: str) -> str:
    return f"- {text}"


def _title(title: str, form: str) -> str:
    return {"text": title, "markdown": f"### {title}", "latex": f"% {title}"}[form]


def _legend(table: Table, ddof: int) -> str:
    bounds = [row.label for row in table.rows if row.method in BOUNDS]
    text = f"percent; mean ± standard deviation over seeds (ddof {ddof}); the best of each score is marked"
    return text + (f", {', '.join(bounds)} apart, which see earlier images again" if bounds else "")


def _grid(table: Table, form: str, ddof: int) -> str:
    """One table; columns that no run recorded are left out."""
    columns = _recorded([table])
    lines = [["method", "seeds", *(column.title for column in columns)]]
    bold = []
    best = {column.title: _best(table, column, ddof) for column in columns}
    for row in table.rows:
        cells = [row.label, _seeds([*row.runs])]
        for column in columns:
            text = _text(row.cell(column, ddof), column)
            if row.label in best[column.title]:
                bold.append((len(lines), len(cells)))
                text = {"text": f"{text} *", "markdown": f"**{text}**", "latex": text}[form]
            cells.append(text)
        lines.append(cells)
    if form == "latex":
        return latex_grid(lines, bold)
    return aligned(lines) if form == "text" else markdown_grid(lines)


def _csv(tables: Sequence[Table], ddof: int) -> str:
    """A line a row, numbers as they are; `best` names the scores in which a row is the best of its table."""
    columns = _recorded(tables)
    names = [name for column in columns for name in ([column.title, f"{column.title} std"][: 1 + column.spread])]
    lines = [["table", "method", "seeds", *names, "best"]]
    for table in tables:
        best = {column.title: _best(table, column, ddof) for column in columns}
        for row in table.rows:
            numbers = []
            for column in columns:
                cell = row.cell(column, ddof)
                numbers += [_raw(cell.mean), *([_raw(cell.std)] if column.spread else [])]
            marked = " ".join(title for title, labels in best.items() if row.label in labels)
            lines.append([table.title, row.label, " ".join(map(str, row.runs)), *numbers, marked])
    return csv_grid(lines)


def _recorded(tables: Sequence[Table]) -> list[Column]:
    rows = [row for table in tables for row in table.rows]
    return [column for column in COLUMNS if any(row.cell(column, 0).mean is not None for row in rows)]


def _best(table: Table, column: Column, ddof: int) -> set[str]:
    """Labels of the rows that are the best in a score as it is printed; none where there is nothing to compare."""
    rivals = [row for row in table.rows if row.method not in BOUNDS]
    if column.best is None or len(rivals) < 2:
        return set()
    values = {row.label: round(mean, column.digits) for row in rivals if (mean := _mean(row, column, ddof)) is not None}
    chosen = (max if column.best == "high" else min)(values.values(), default=None)
    return {label for label, value in values.items() if value == chosen}


def _mean(row: Row, column: Column, ddof: int) -> float | None:
    return row.cell(column, ddof).mean


def _text(cell: Cell, column: Column) -> str:
    if cell.mean is None:
        return "-"
    spread = "" if cell.std is None else f" ± {cell.std:.{column.digits}f}"
    return f"{cell.mean:,.{column.digits}f}{spread}"


def _raw(value: float | None) -> str:
    return "" if value is None else repr(round(value, 6))


def _seeds(seeds: Sequence[int]) -> str:
    """0-4 where they follow each other, else 0,2,5."""
    if len(seeds) > 1 and list(seeds) == [*range(seeds[0], seeds[-1] + 1)]:
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))
